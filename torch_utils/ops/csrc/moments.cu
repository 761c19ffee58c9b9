// Mean and variance of every plane on the GPU, in one pass: a block of threads for each plane, or several where there
// are fewer planes than a GPU has room for.

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

// Joins the parts of a plane in a fixed order: a thread for each plane.
template <class S>
__global__ void __launch_bounds__(kThreads)
    moments_join(const S* x, S* mean, S* var, const Accumulate<S>* parts, int64_t planes, int count, int64_t inner) {
  using A = Accumulate<S>;
  const int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= planes) return;
  A sums[2] = {};
  for (int part = 0; part < count; part++)
    for (int i = 0; i < 2; i++) sums[i] += parts[(j * count + part) * 2 + i];
  store(mean + j, var + j, moments_origin(x + j * inner, inner), sums[0], sums[1], inner);
}

std::tuple<at::Tensor, at::Tensor> moments_cuda(const at::Tensor& x_) {
  check_moments(x_);
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous();
  at::Tensor mean = at::empty({x.size(0), x.size(1)}, x.options()), var = at::empty(mean.sizes(), x.options());
  const int64_t planes = mean.numel(), inner = x.size(2) * x.size(3);
  TORCH_CHECK_VALUE(planes <= std::numeric_limits<int>::max(),
                    "x: " + text(x.sizes()) + " is too large for the GPU kernel");
  if (planes == 0) return {mean, var};
  // the same on every GPU, so that the sums are
  const int64_t worth = std::min(kBlocks / planes, inner / kValues), count = std::clamp<int64_t>(worth, 1, kParts);
  DISPATCH_FLOATING(x.scalar_type(), "moments", [&] {
    using A = Accumulate<scalar_t>;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t *to_mean = mean.mutable_data_ptr<scalar_t>(), *to_var = var.mutable_data_ptr<scalar_t>();
    const auto options = x.options().dtype(c10::CppTypeToScalarType<A>::value);
    at::Tensor parts = at::empty({count > 1 ? planes * count * 2 : 0}, options);
    A* sums = parts.mutable_data_ptr<A>();
    launch(moments<scalar_t>, dim3(planes, count), kThreads, 0, from, to_mean, to_var, sums, inner);
    if (count > 1)
      launch(moments_join<scalar_t>, blocks_of(planes, kThreads), kThreads, 0, from, to_mean, to_var, sums, planes,
             int(count), inner);
  });
  return {mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("moments", &moments_cuda); }
