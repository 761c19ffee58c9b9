// Mean and variance of every plane on the GPU, in one pass: a block of threads for each plane, or several where there
// are fewer planes than a GPU has room for. In channels-last memory a block takes the planes of some vectors of
// channels, and its threads are beside each other in the channels of a pixel.

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 2048;           // that fill the largest GPU, with 8 for each of its SMs
constexpr int64_t kValues = 16 * kThreads;  // of a plane that are worth a block
constexpr int kParts = 32;                  // of a plane, at most
constexpr int kBeside = 8;                  // threads that lie beside each other in channels-last memory

// Mean and variance from sums of what a plane's values are above its origin.
template <class S, class A>
__device__ void store(S* mean, S* var, A origin, A sum, A squares, int64_t inner) {
  const A shift = sum / inner, variance = squares / inner - shift * shift;
  *mean = static_cast<S>(origin + shift);
  *var = static_cast<S>(variance < 0 ? A(0) : variance);
}

// A plane is that of blockIdx.x. With several blocks for it, each writes two sums to `parts` [planes, blocks, 2].
template <class S>
__global__ void __launch_bounds__(kThreads) moments(const S* x, S* mean, S* var, Accumulate<S>* parts, int64_t inner) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / 32];
  const S* plane = x + blockIdx.x * inner;
  const A origin = moments_origin(plane, inner);
  A sum = 0, squares = 0;
  for (int64_t j = blockIdx.y * kThreads + threadIdx.x; j < inner; j += gridDim.y * kThreads) {
    const A d = static_cast<A>(plane[j]) - origin;
    sum += d;
    squares += d * d;
  }
  sum = block_sum(sum, shared);
  squares = block_sum(squares, shared);
  if (threadIdx.x > 0) return;
  if (gridDim.y == 1) return store(mean + blockIdx.x, var + blockIdx.x, origin, sum, squares, inner);
  A* part = parts + (int64_t(blockIdx.x) * gridDim.y + blockIdx.y) * 2;
  part[0] = sum, part[1] = squares;
}

// Channels-last: of sample blockIdx.z, kBeside vectors of V channels from blockIdx.x · kBeside on. One belongs to every
// kBeside-th thread.
template <class S, int V>
__global__ void __launch_bounds__(kThreads)
    moments_last(const S* x, S* mean, S* var, Accumulate<S>* parts, int64_t inner, int channels, int64_t first) {
  using A = Accumulate<S>;
  constexpr int warps = kThreads / 32;
  __shared__ A shared[2][V][warps][kBeside];
  const int warp = threadIdx.x / 32, beside = threadIdx.x % kBeside, row = threadIdx.x / kBeside;
  const int channel = (blockIdx.x * kBeside + beside) * V, last = max(0, min(channel, channels - V));
  const int64_t sample = first + blockIdx.z;
  const S* image = x + sample * inner * channels + last;  // threads beyond the channels read others in vain
  A origin[V], sums[2][V] = {};
#pragma unroll
  for (int v = 0; v < V; v++) origin[v] = moments_origin(image + v, inner, channels);
#pragma unroll 4
  for (int64_t j = int64_t(blockIdx.y) * (kThreads / kBeside) + row; j < inner; j += gridDim.y * (kThreads / kBeside)) {
    const Pack<S, V> pack = *reinterpret_cast<const Pack<S, V>*>(image + j * channels);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const A d = static_cast<A>(pack.value[v]) - origin[v];
      sums[0][v] += d, sums[1][v] += d * d;
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * V; i++) {
    A& sum = sums[i / V][i % V];
#pragma unroll
    for (int offset = kBeside; offset < 32; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (threadIdx.x % 32 < kBeside) shared[i / V][i % V][warp][beside] = sum;
  }
  __syncthreads();
  if (row >= V || channel >= channels) return;  // then a thread for each channel
  A total[2] = {};
#pragma unroll
  for (int i = 0; i < 2 * warps; i++) total[i % 2] += shared[i % 2][row][i / 2][beside];
  const int64_t plane = sample * channels + channel + row;
  A mine = 0;
#pragma unroll
  for (int v = 0; v < V; v++) mine = v == row ? origin[v] : mine;
  if (gridDim.y == 1) return store(mean + plane, var + plane, mine, total[0], total[1], inner);
  A* part = parts + (plane * gridDim.y + blockIdx.y) * 2;
  part[0] = total[0], part[1] = total[1];
}

// Joins the parts of a plane in a fixed order: a thread for each plane. Its values lie `beside` apart, and begin beside
// those of as many others.
template <class S>
__global__ void __launch_bounds__(kThreads) moments_join(const S* x, S* mean, S* var, const Accumulate<S>* parts,
                                                         int64_t planes, int count, int64_t inner, int64_t beside) {
  using A = Accumulate<S>;
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= planes) return;
  A sums[2] = {};
  for (int part = 0; part < count; part++)
    for (int i = 0; i < 2; i++) sums[i] += parts[(j * count + part) * 2 + i];
  const S* first = x + j / beside * beside * inner + j % beside;
  store(mean + j, var + j, moments_origin(first, inner, beside), sums[0], sums[1], inner);
}

// A launch for each 65535 samples, which the third dimension of a grid holds.
template <class S, int V>
void launch_last(const S* x, S* mean, S* var, Accumulate<S>* parts, int64_t samples, int64_t channels, int64_t inner,
                 int64_t count) {
  for (int64_t first = 0; first < samples; first += 65535)
    launch(moments_last<S, V>, dim3(blocks_of(channels, kBeside * V), count, std::min<int64_t>(samples - first, 65535)),
           kThreads, 0, x, mean, var, parts, inner, int(channels), first);
}

template <class S>
void compute(const at::Tensor& x, at::Tensor& mean, at::Tensor& var) {
  using A = Accumulate<S>;
  constexpr int wide = 16 / sizeof(S);
  const int64_t channels = x.size(1), planes = mean.numel(), inner = x.size(2) * x.size(3);
  const bool last = order_of(x) == at::MemoryFormat::ChannelsLast;
  const S* from = x.const_data_ptr<S>();
  S *to_mean = mean.mutable_data_ptr<S>(), *to_var = var.mutable_data_ptr<S>();
  const bool packs = channels % wide == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  const int64_t together = last ? kBeside * (packs ? wide : 1) : 1;  // planes that a block takes
  // the same on every GPU, so that the sums are
  const int64_t blocks = last ? x.size(0) * blocks_of(channels, together) : planes;
  const int64_t worth = std::min(kBlocks / blocks, inner * together / kValues);
  const int64_t count = std::clamp<int64_t>(worth, 1, kParts);
  at::Tensor parts =
      at::empty({count > 1 ? planes * count * 2 : 0}, x.options().dtype(c10::CppTypeToScalarType<A>::value));
  A* sums = parts.mutable_data_ptr<A>();
  if (!last)
    launch(moments<S>, dim3(planes, count), kThreads, 0, from, to_mean, to_var, sums, inner);
  else if (packs)
    launch_last<S, wide>(from, to_mean, to_var, sums, x.size(0), channels, inner, count);
  else
    launch_last<S, 1>(from, to_mean, to_var, sums, x.size(0), channels, inner, count);
  if (count > 1)
    launch(moments_join<S>, blocks_of(planes, kThreads), kThreads, 0, from, to_mean, to_var, sums, planes, int(count),
           inner, last ? channels : 1);
}

std::tuple<at::Tensor, at::Tensor> moments_cuda(const at::Tensor& x_) {
  check_moments(x_);
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous(order_of(x_));
  at::Tensor mean = at::empty({x.size(0), x.size(1)}, x.options()), var = at::empty(mean.sizes(), x.options());
  TORCH_CHECK_VALUE(mean.numel() <= std::numeric_limits<int>::max(),
                    "x: " + text(x.sizes()) + " is too large for the GPU kernel");
  if (mean.numel() > 0) DISPATCH_FLOATING(x.scalar_type(), "moments", [&] { compute<scalar_t>(x, mean, var); });
  return {mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("moments", &moments_cuda); }
