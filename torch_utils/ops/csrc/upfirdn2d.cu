// Upsample, filter, downsample on the GPU, for separable filters. See upfirdn2d.cpp.
//
// upfirdn2d_rows, for four taps and factors of 1 and 2: a thread computes a column of outputs, one below the other. It
// filters each row of x along x once, and adds that to all outputs that the row is a part of; all of this is unrolled,
// and in registers. upfirdn2d_any, for all others: a thread for each output. Both read planes and channels-last memory.

#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256, kRows = 8, kTaps = 4;

struct Shape {
  int height, width, out_height, out_width, taps, up, down, left, top;
  int64_t beside;  // values that lie beside each other for one pixel: 1, or the channels where they are last
};

// The first tap that falls on a value of x, where `start` is the place of tap 0 in the upsampled image.
__device__ __forceinline__ int first_tap(int start, int up) { return ((-start) % up + up) % up; }

// kRows outputs of a column, of which the first is `above` rows above a multiple of kRows, so that its tap 0 falls on a
// value of x. `planes`: neighbours in a row lie beside each other; else V channels do.
template <class S, int up, int down, bool planes, int V>
__global__ void __launch_bounds__(kThreads)
    upfirdn2d_rows(const S* x, const Accumulate<S>* f, S* y, unsigned columns, Shape shape, int above, double gain) {
  using A = Accumulate<S>;
  using P = Pack<S, V>;
  static_assert(kTaps % up == 0 && kRows % up == 0 && (V == 1 || !planes));
  constexpr int n = kTaps / up;                                 // taps that fall on values, along each axis
  constexpr int rows = ((kRows - 1) * down + up - 1) / up + n;  // of x that are read
  const unsigned j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= columns) return;
  const unsigned beside = planes ? 1 : shape.beside / V, width = shape.out_width,
                 strips = (shape.out_height + above - 1) / kRows + 1;
  const unsigned pixel = j / beside, strip = pixel / width % strips;
  const int64_t picture = pixel / width / strips;
  const int oy = int(strip) * kRows - above, ox = pixel % width;

  const int start_x = ox * down - shape.left, tap = first_tap(start_x, up), column = (start_x + tap) / up;
  const int row = (oy * down - shape.top) / up;
  const int64_t stride = shape.width * shape.beside;  // of the rows of x
  const S* from = x + picture * shape.height * stride + row * stride + column * shape.beside + j % beside * V;
  A along[n], across[kTaps], sum[kRows][V] = {};
  bool inside[n];
#pragma unroll
  for (int t = 0; t < n; t++) along[t] = f[tap + t * up], inside[t] = column + t >= 0 && column + t < shape.width;
#pragma unroll
  for (int t = 0; t < kTaps; t++) across[t] = f[t] * A(gain);

#pragma unroll
  for (int m = 0; m < rows; m++, from += stride) {
    A value[V] = {};
    if (row + m >= 0 && row + m < shape.height) {
#pragma unroll
      for (int t = 0; t < n; t++) {
        if (!inside[t]) continue;
        const P pack = *reinterpret_cast<const P*>(from + (planes ? t : t * shape.beside));
#pragma unroll
        for (int v = 0; v < V; v++) value[v] += along[t] * static_cast<A>(pack.value[v]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      // the taps of output r begin at `phase`, on row `first` of those that are read
      const int phase = (up - r * down % up) % up, first = (r * down + phase) / up;
      if (m < first || m >= first + n) continue;
#pragma unroll
      for (int v = 0; v < V; v++) sum[r][v] += across[phase + (m - first) * up] * value[v];
    }
  }
  S* to = y + ((picture * shape.out_height + oy) * width + ox) * shape.beside + j % beside * V;
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    if (oy + r < 0 || oy + r >= shape.out_height) continue;
    P pack;
#pragma unroll
    for (int v = 0; v < V; v++) pack.value[v] = static_cast<S>(sum[r][v]);
    *reinterpret_cast<P*>(to + r * width * shape.beside) = pack;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    upfirdn2d_any(const S* x, const Accumulate<S>* f, S* y, int64_t outputs, Shape shape, double gain) {
  using A = Accumulate<S>;
  extern __shared__ char memory[];
  A* taps = reinterpret_cast<A*>(memory);
  for (int t = threadIdx.x; t < shape.taps; t += kThreads) taps[t] = f[t];
  __syncthreads();
  for (int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x; j < outputs; j += int64_t(gridDim.x) * kThreads) {
    const int64_t pixel = j / shape.beside;
    const int ox = pixel % shape.out_width, oy = pixel / shape.out_width % shape.out_height;
    const int64_t picture = pixel / (int64_t(shape.out_width) * shape.out_height);
    const S* plane = x + picture * shape.height * shape.width * shape.beside + j % shape.beside;
    const int start_y = oy * shape.down - shape.top, start_x = ox * shape.down - shape.left;
    const int tap_y = first_tap(start_y, shape.up), tap_x = first_tap(start_x, shape.up);
    A sum = 0;
    for (int ty = tap_y, iy = (start_y + tap_y) / shape.up; ty < shape.taps; ty += shape.up, iy++) {
      if (iy < 0 || iy >= shape.height) continue;
      A row = 0;
      for (int tx = tap_x, ix = (start_x + tap_x) / shape.up; tx < shape.taps; tx += shape.up, ix++)
        if (ix >= 0 && ix < shape.width)
          row += taps[tx] * static_cast<A>(plane[(int64_t(iy) * shape.width + ix) * shape.beside]);
      sum += taps[ty] * row;
    }
    y[j] = static_cast<S>(sum * A(gain));
  }
}

template <class S, int up, int down>
bool launch_rows(const at::Tensor& x, const at::Tensor& filter, at::Tensor& y, const Shape& shape, double gain) {
  if (shape.taps != kTaps || shape.up != up || shape.down != down) return false;
  int above = 0;
  while (above < up && (above * down + shape.top) % up != 0) above++;
  const int64_t strips = (shape.out_height + above - 1) / kRows + 1, columns = y.numel() / shape.out_height * strips;
  if (above == up || columns > std::numeric_limits<int>::max() || shape.beside > std::numeric_limits<int>::max())
    return false;
  const S* from = x.const_data_ptr<S>();
  S* to = y.mutable_data_ptr<S>();
  const auto aligned = [](const S* address) { return reinterpret_cast<uintptr_t>(address) % sizeof(Pack<S, 2>) == 0; };
  const bool pairs = shape.beside % 2 == 0 && aligned(from) && aligned(to);
  const int64_t threads = pairs ? columns / 2 : columns;
  launch(shape.beside == 1 ? upfirdn2d_rows<S, up, down, true, 1>
         : pairs           ? upfirdn2d_rows<S, up, down, false, 2>
                           : upfirdn2d_rows<S, up, down, false, 1>,
         blocks_of(threads, kThreads), kThreads, 0, from, filter.const_data_ptr<Accumulate<S>>(), to, unsigned(threads),
         shape, above, gain);
  return true;
}

at::Tensor upfirdn2d_cuda(const at::Tensor& x_, const at::Tensor& f, int64_t up, int64_t down, at::IntArrayRef padding,
                          double gain) {
  const auto [height, width] = check_upfirdn2d(x_, f, up, down, padding);
  const int64_t taps = f.numel();
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::MemoryFormat order = order_of(x_);
  at::Tensor y = empty_output({x_.size(0), x_.size(1), height, width}, x_.options(), order);
  if (y.numel() == 0) return y;
  const at::Tensor x = x_.contiguous(order);
  const Shape shape{int(x.size(2)),  int(x.size(3)),
                    int(height),     int(width),
                    int(taps),       int(up),
                    int(down),       int(padding[0]),
                    int(padding[2]), order == at::MemoryFormat::ChannelsLast ? x.size(1) : 1};
  const int64_t blocks = std::min<int64_t>(blocks_of(y.numel(), kThreads), 1 << 20);
  DISPATCH_FLOATING(x.scalar_type(), "upfirdn2d", [&] {
    using A = Accumulate<scalar_t>;
    const at::Tensor filter = f.to(c10::CppTypeToScalarType<A>::value).contiguous();
    if (launch_rows<scalar_t, 1, 1>(x, filter, y, shape, gain) ||
        launch_rows<scalar_t, 2, 1>(x, filter, y, shape, gain) ||
        launch_rows<scalar_t, 1, 2>(x, filter, y, shape, gain) ||
        launch_rows<scalar_t, 2, 2>(x, filter, y, shape, gain))
      return;
    launch(upfirdn2d_any<scalar_t>, blocks, kThreads, taps * sizeof(A), x.const_data_ptr<scalar_t>(),
           filter.const_data_ptr<A>(), y.mutable_data_ptr<scalar_t>(), y.numel(), shape, gain);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("upfirdn2d", &upfirdn2d_cuda); }
