// Bias, activation, gain and clamp on the GPU, in one pass; and its gradient, from what came out. See bias_act.cpp.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256;

// clamp(gain · act(…)); a negative clamp is none.
struct Function {
  Activation act;
  double gain, clamp;
};

template <class A>
__device__ A activate(Activation act, A x) {
  switch (act) {
    case kRelu: return x <= 0 ? A(0) : x;  // so that what is no number stays none
    case kLrelu: return x > 0 ? x : x * A(0.2);
    case kSigmoid: return A(1) / (A(1) + exp(-x));
    case kTanh: return tanh(x);
    default: return x;
  }
}

// The derivative of gain · act by x, from y = gain · act(x).
template <class A>
__device__ A derivative(Activation act, A y, A gain) {
  switch (act) {
    case kRelu: return (y > 0) == (gain > 0) && y != 0 ? gain : A(0);
    case kLrelu: return (y > 0) == (gain > 0) && y != 0 ? gain : gain * A(0.2);
    case kSigmoid: return y * (A(1) - y / gain);
    case kTanh: return gain - y * y / gain;
    default: return gain;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) bias_act_forward(const S* x, const S* bias, S* y, int64_t count,
                                                             int64_t inner, int64_t channels, Function function) {
  using A = Accumulate<S>;
  for (int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x; j < count; j += int64_t(gridDim.x) * kThreads) {
    const A b = bias ? static_cast<A>(bias[j / inner % channels]) : A(0);
    const A limit = static_cast<A>(static_cast<S>(function.clamp));  // as it comes out in the type of y
    A value = A(function.gain) * activate(function.act, static_cast<A>(x[j]) + b);
    if (function.clamp >= 0) value = value > limit ? limit : value < -limit ? -limit : value;
    y[j] = static_cast<S>(value);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    bias_act_gradient(const S* dy, const S* y, S* dx, int64_t count, Function function) {
  using A = Accumulate<S>;
  for (int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x; j < count; j += int64_t(gridDim.x) * kThreads) {
    const A value = static_cast<A>(y[j]);
    const A limit = static_cast<A>(static_cast<S>(function.clamp));
    const bool outside = function.clamp >= 0 && (value >= limit || value <= -limit);
    const A slope = derivative(function.act, value, A(function.gain));
    dx[j] = static_cast<S>(!outside ? static_cast<A>(dy[j]) * slope : A(0));
  }
}

int64_t grid(int64_t count) { return std::min<int64_t>(blocks_of(count, kThreads), 1 << 20); }

at::Tensor bias_act_cuda(const at::Tensor& x_, const std::optional<at::Tensor>& bias_, int64_t act, double gain,
                         double clamp) {
  check_bias_act(x_, act, gain);
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::MemoryFormat order = order_of(x_);
  const at::Tensor x = x_.contiguous(order), bias = check_bias(x_, bias_);
  at::Tensor y = empty_output(x.sizes(), x.options(), order);
  if (y.numel() == 0) return y;
  // neighbours in memory that share a channel
  const int64_t inner = order == at::MemoryFormat::ChannelsLast ? 1 : x.numel() / (x.size(0) * x.size(1));
  DISPATCH_FLOATING(x.scalar_type(), "bias_act", [&] {
    bias_act_forward<scalar_t><<<grid(x.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<scalar_t>(), bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr,
        y.mutable_data_ptr<scalar_t>(), x.numel(), inner, x.size(1), Function{Activation(act), gain, clamp});
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_act_grad_cuda(const at::Tensor& dy_, const at::Tensor& y_, int64_t act,
                                                      double gain, double clamp) {
  check_bias_act(dy_, act, gain);
  check_like(dy_, y_, "y", "dy");
  const c10::cuda::CUDAGuard guard(dy_.device());
  const at::MemoryFormat order = order_of(y_);
  const at::Tensor dy = dy_.contiguous(order), y = y_.contiguous(order);
  at::Tensor dx = empty_output(dy.sizes(), dy.options(), order);
  if (dx.numel() > 0)
    DISPATCH_FLOATING(dy.scalar_type(), "bias_act_grad", [&] {
      bias_act_gradient<scalar_t><<<grid(dy.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          dy.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(), dx.mutable_data_ptr<scalar_t>(), dy.numel(),
          Function{Activation(act), gain, clamp});
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  // half precision is summed up in float32 by `sum`
  if (order == at::MemoryFormat::ChannelsLast) return {dx, dx.sum(at::IntArrayRef{0, 2, 3})};
  const int64_t planes = dx.size(0) * dx.size(1), inner = planes ? dx.numel() / planes : 0;
  return {dx, dx.view({dx.size(0), dx.size(1), inner}).sum(at::IntArrayRef{0, 2})};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) {
  m.impl("bias_act", &bias_act_cuda);
  m.impl("bias_act_grad", &bias_act_grad_cuda);
}
