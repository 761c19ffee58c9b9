// Mean and variance of every plane on the GPU, in one pass: a block of threads for each plane.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <tuple>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256;

template <class S>
__global__ void __launch_bounds__(kThreads) moments(const S* x, S* mean, S* var, int64_t inner) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / 32];
  const S* plane = x + blockIdx.x * inner;
  const A origin = moments_origin(plane, inner);
  A sum = 0, squares = 0;
  for (int64_t j = threadIdx.x; j < inner; j += kThreads) {
    const A d = static_cast<A>(plane[j]) - origin;
    sum += d;
    squares += d * d;
  }
  sum = block_sum(sum, shared);
  squares = block_sum(squares, shared);
  if (threadIdx.x == 0) {
    const A shift = sum / inner, variance = squares / inner - shift * shift;
    mean[blockIdx.x] = static_cast<S>(origin + shift);
    var[blockIdx.x] = static_cast<S>(variance < 0 ? A(0) : variance);
  }
}

std::tuple<at::Tensor, at::Tensor> moments_cuda(const at::Tensor& x_) {
  check_moments(x_);
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::Tensor x = x_.contiguous();
  at::Tensor mean = at::empty({x.size(0), x.size(1)}, x.options()), var = at::empty(mean.sizes(), x.options());
  const int64_t planes = mean.numel();
  TORCH_CHECK_VALUE(planes <= std::numeric_limits<int>::max(), "x: ", x.sizes(), " is too large for the GPU kernel");
  if (planes > 0)
    DISPATCH_FLOATING(x.scalar_type(), "moments", [&] {
      launch(moments<scalar_t>, planes, kThreads, 0, x.const_data_ptr<scalar_t>(), mean.mutable_data_ptr<scalar_t>(),
             var.mutable_data_ptr<scalar_t>(), x.size(2) * x.size(3));
    });
  return {mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("moments", &moments_cuda); }
