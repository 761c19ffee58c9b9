// From planes to channels-last memory and back: a matrix of channels × pixels, or of pixels × channels, transposed for
// each sample, by tiles in shared memory, so that it is read and written along its rows.

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "cuda.cuh"

namespace {

constexpr int kTile = 32, kRows = 8;  // of a block's threads, each of which copies kTile / kRows values

// [samples, rows, columns] → [samples, columns, rows], of sample blockIdx.y.
template <class T>
__global__ void __launch_bounds__(kTile* kRows) transpose(const T* from, T* to, int64_t rows, int64_t columns) {
  __shared__ T tile[kTile][kTile + 1];  // one more, so that a column lies in different banks
  const int64_t tiles = (columns + kTile - 1) / kTile, size = rows * columns;
  const int64_t top = blockIdx.x / tiles * kTile, left = blockIdx.x % tiles * kTile;
#pragma unroll
  for (int j = threadIdx.y; j < kTile; j += kRows)
    if (top + j < rows && left + threadIdx.x < columns)
      tile[j][threadIdx.x] = from[blockIdx.y * size + (top + j) * columns + left + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int j = threadIdx.y; j < kTile; j += kRows)
    if (left + j < columns && top + threadIdx.x < rows)
      to[blockIdx.y * size + (left + j) * rows + top + threadIdx.x] = tile[threadIdx.x][j];
}

template <class T>
void transpose_samples(const at::Tensor& x, at::Tensor& y, int64_t rows, int64_t columns) {
  for (int64_t n = 0; n < x.size(0); n += 65535) {
    const dim3 grid(blocks_of(rows, kTile) * blocks_of(columns, kTile), std::min<int64_t>(x.size(0) - n, 65535));
    const int64_t before = n * rows * columns;
    launch(transpose<T>, grid, dim3(kTile, kRows), 0, static_cast<const T*>(x.const_data_ptr()) + before,
           static_cast<T*>(y.mutable_data_ptr()) + before, rows, columns);
  }
}

}  // namespace

at::Tensor reorder(const at::Tensor& x, at::MemoryFormat order) {
  const bool last = order == at::MemoryFormat::ChannelsLast;
  const bool other = x.is_contiguous(last ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast);
  if (x.is_contiguous(order) || !other || x.numel() == 0) return x.contiguous(order);
  at::Tensor y = empty_output(x.sizes(), x.options(), order);
  const int64_t pixels = x.size(2) * x.size(3), rows = last ? x.size(1) : pixels, columns = last ? pixels : x.size(1);
  switch (x.element_size()) {
    case 2: return transpose_samples<uint16_t>(x, y, rows, columns), y;
    case 4: return transpose_samples<uint32_t>(x, y, rows, columns), y;
    case 8: return transpose_samples<uint64_t>(x, y, rows, columns), y;
  }
  return x.contiguous(order);
}
