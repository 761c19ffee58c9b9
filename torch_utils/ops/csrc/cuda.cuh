// What the CUDA kernels share. Only headers that need nothing but the CUDA runtime.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>

inline int64_t blocks_of(int64_t work, int64_t size) { return (work + size - 1) / size; }

inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                               at::MemoryFormat order = at::MemoryFormat::Contiguous) {
  return at::empty(sizes, options.memory_format(order));
}

// The sum of a value over all threads of a block, in thread 0. `shared` holds a value for each warp.
template <class A>
__device__ A block_sum(A value, A* shared) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < blockDim.x / 32; warp++) value += shared[warp];
  return value;
}
