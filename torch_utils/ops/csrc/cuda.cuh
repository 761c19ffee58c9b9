// What the CUDA kernels share. Only headers that need nothing but the CUDA runtime.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

inline int64_t blocks_of(int64_t work, int64_t size) { return (work + size - 1) / size; }

inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                               at::MemoryFormat order = at::MemoryFormat::Contiguous) {
  return at::empty(sizes, options.memory_format(order));
}

// x in an order of memory: itself where it has that order. On its GPU, under a guard. In reorder.cu.
at::Tensor reorder(const at::Tensor& x, at::MemoryFormat order);

// The first digit of a GPU's compute capability: 8 for sm_80.
inline int compute_capability(at::Device device) {
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index()));
  return major;
}

// Runs a kernel on the current stream, with `shared` bytes of memory for each block.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared, Arguments... arguments) {
  kernel<<<grid, threads, shared, c10::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// V values beside each other, as a thread loads and stores them: columns of a row, or channels of a pixel.
template <class S, int V>
struct alignas(sizeof(S) * V) Pack {
  S value[V];
};

// Has the compiler keep a value in a register, and neither compute it again nor take it apart, if it is the address of
// a tensor.
template <class T>
__device__ __forceinline__ void keep(T& value) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 8)
    asm("" : "+l"(value));
  else
    asm("" : "+r"(value));
  if constexpr (std::is_pointer_v<T>) __builtin_assume(__isGlobal(value));
#endif
}

// N sums of a value each over the lanes of a warp, N a power of two up to 32: each lane gets the one of number
// lane / (32 / N). Step by step, each half of the lanes takes over half of the values: N − 1 shuffles for N = 32, and
// not 5 N. All indices are known to the compiler, which keeps the values in registers.
template <int N, int step = 16, class A>
__device__ __forceinline__ A warp_sums(A* value) {
  static_assert(N <= 32 && (N & (N - 1)) == 0);
  if constexpr (step == 0) {
    return value[0];
  } else if constexpr (N == 1) {
    value[0] += __shfl_xor_sync(~0u, value[0], step);
    return warp_sums<1, step / 2>(value);
  } else {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      const A kept = upper ? value[i + N / 2] : value[i], given = upper ? value[i] : value[i + N / 2];
      value[i] = kept + __shfl_xor_sync(~0u, given, step);
    }
    return warp_sums<N / 2, step / 2>(value);
  }
}

// Of a warp, on tensor cores of sm_80 and later: c += a · b, [16, 8] += [16, 16] · [16, 8], added up in float32. Of a,
// register r of a lane holds row lane / 4 + 8 · (r % 2) in columns 2 · (lane % 4) + 8 · (r / 2) and the next; of b,
// column lane / 4 in rows 2 · (lane % 4) + 8 · r and the next; of c, row lane / 4 + 8 · (r / 2) in column
// 2 · (lane % 4) + r % 2 (PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type"). All lanes take part:
// volatile, so that the compiler moves it into no branch that some of them take.
template <class S>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<S, at::Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
  __trap();  // never launched there
#elif !defined(__CUDACC__)
  emulated::multiply_add<S>(c, a, b);
#endif
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
