// Bias, activation, gain and clamp on the GPU, in one pass; and its gradient, from what came out. See bias_act.cpp.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256;

// What a kernel is compiled for: linear and the leaky ReLU, which differ by a number; ReLU; the sigmoid and tanh.
enum Kind { kStraight, kRectified, kCurved };

// y = clamp(gain · act(x)) and its gradient, for values of the type S. Each line is a few instructions without a
// branch; at NaN and infinity they are what PyTorch's own functions are.
template <class S>
struct Function {
  using A = Accumulate<S>;
  Activation act;
  A slope, gain, clamp;  // the clamp as it comes out in the type of y; infinite for none
  A sign;                // of the gain
  bool clamped;

  Function(Activation act, double gain, double clamp)
      : act(act),
        slope(act == kLinear ? 1 : 0.2),
        gain(gain),
        clamp(clamp < 0 ? std::numeric_limits<A>::infinity() : static_cast<A>(static_cast<S>(clamp))),
        sign(gain > 0 ? 1 : -1),
        clamped(clamp >= 0) {}

  template <Kind kind>
  __device__ A value(A x) const {
    A y;
    if constexpr (kind == kCurved) {
      y = act == kSigmoid ? A(1) / (A(1) + exp(-x)) : tanh(x);
    } else if constexpr (kind == kRectified) {
      y = x <= 0 ? A(0) : x;
    } else {
      y = x > 0 ? x : x * slope;
    }
    y *= gain;
    return y != y ? y : fmin(fmax(y, -clamp), clamp);
  }

  // dx from dy and y. Nothing passes where the clamp cuts, whatever dy is. NaN is not inside a clamp, but the slope of
  // a sigmoid there is NaN, which is more than the 0 that comes to it.
  template <Kind kind>
  __device__ A gradient(A dy, A y) const {
    if constexpr (kind == kCurved) {
      const A dx = dy * (act == kSigmoid ? y * (A(1) - y / gain) : gain - y * y / gain);
      return clamped && fabs(y) >= clamp ? A(0) : dx;
    }
    const bool inside = !clamped || fabs(y) < clamp;
    if constexpr (kind == kRectified) return inside && !(sign * y <= 0) ? dy * gain : A(0);
    const A dx = dy * (sign * y > 0 ? gain : gain * slope);
    return inside ? dx : A(0);
  }
};

// Where the bias of a pack comes from: there is none; all its values share a channel; or they are those of V channels
// beside each other.
enum Shift { kNone, kOfPlane, kOfPixel };

// `count` packs, of which `inner` beside each other share a channel, where that is so.
template <class S, int V, class Index, Kind kind, Shift shift>
__global__ void __launch_bounds__(kThreads)
    bias_act_forward(const Pack<S, V>* x, const S* bias, Pack<S, V>* y, Index count, Index inner, Index channels,
                     Function<S> function) {
  using A = Accumulate<S>;
  for (Index j = Index(blockIdx.x) * kThreads + threadIdx.x; j < count; j += Index(gridDim.x) * kThreads) {
    const Pack<S, V> from = x[j];
    Pack<S, V> to, of = {};
    if constexpr (shift == kOfPlane) of.value[0] = bias[j / inner % channels];
    if constexpr (shift == kOfPixel) of = reinterpret_cast<const Pack<S, V>*>(bias)[j % (channels / V)];
#pragma unroll
    for (int k = 0; k < V; k++) {
      const A b = static_cast<A>(of.value[shift == kOfPixel ? k : 0]);
      const A value = static_cast<A>(from.value[k]);
      to.value[k] = static_cast<S>(function.template value<kind>(shift == kNone ? value : value + b));
    }
    y[j] = to;
  }
}

template <class S, int V, class Index, Kind kind>
__global__ void __launch_bounds__(kThreads)
    bias_act_gradient(const Pack<S, V>* dy, const Pack<S, V>* y, Pack<S, V>* dx, Index count, Function<S> function) {
  using A = Accumulate<S>;
  for (Index j = Index(blockIdx.x) * kThreads + threadIdx.x; j < count; j += Index(gridDim.x) * kThreads) {
    const Pack<S, V> out = y[j], from = dy[j];
    Pack<S, V> to;
#pragma unroll
    for (int k = 0; k < V; k++)
      to.value[k] =
          static_cast<S>(function.template gradient<kind>(static_cast<A>(from.value[k]), static_cast<A>(out.value[k])));
    dx[j] = to;
  }
}

int64_t grid(int64_t count) { return std::min<int64_t>(blocks_of(count, kThreads), 1 << 20); }

template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

// Calls f with the values of a pack, the type of an index, and the kind of the function. A pack has 16 bytes where all
// addresses and `size` allow; an index has 32 bits where that is enough.
template <class S, class F>
void with_packs(std::initializer_list<const void*> addresses, int64_t size, int64_t count, int64_t act, F f) {
  constexpr int V = 16 / sizeof(S);
  bool whole = size % V == 0;
  for (const void* address : addresses) whole = whole && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  const auto with_function = [&](auto v, auto index) {
    if (act == kRelu) return f(v, index, Constant<kRectified>());
    act >= kSigmoid ? f(v, index, Constant<kCurved>()) : f(v, index, Constant<kStraight>());
  };
  const auto with_index = [&](auto v) {
    // the last step beyond the end is to fit as well
    count <= std::numeric_limits<int>::max() ? with_function(v, unsigned()) : with_function(v, int64_t());
  };
  whole ? with_index(Constant<V>()) : with_index(Constant<1>());
}

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
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    const scalar_t* shift = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    const int64_t size = inner > 1 ? inner : x.size(1);
    with_packs<scalar_t>({from, shift, to}, size, x.numel(), act, [&](auto v, auto index, auto kind) {
      using Index = decltype(index);
      using P = Pack<scalar_t, v>;
      const auto with_shift = [&](auto of) {
        launch(bias_act_forward<scalar_t, v, Index, kind, of>, grid(x.numel() / v), kThreads, 0,
               reinterpret_cast<const P*>(from), shift, reinterpret_cast<P*>(to), Index(x.numel() / v),
               Index(inner > 1 ? inner / v : 0), Index(x.size(1)), Function<scalar_t>(Activation(act), gain, clamp));
      };
      if (!shift) return with_shift(Constant<kNone>());
      inner > 1 ? with_shift(Constant<kOfPlane>()) : with_shift(Constant<kOfPixel>());
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_act_grad_cuda(const at::Tensor& dy_, const at::Tensor& y_, int64_t act,
                                                      double gain, double clamp, bool with_bias) {
  check_bias_act(dy_, act, gain);
  check_like(dy_, y_, "y", "dy");
  const c10::cuda::CUDAGuard guard(dy_.device());
  const at::MemoryFormat order = order_of(y_);
  const at::Tensor dy = dy_.contiguous(order), y = y_.contiguous(order);
  at::Tensor dx = empty_output(dy.sizes(), dy.options(), order);
  if (dx.numel() > 0)
    DISPATCH_FLOATING(dy.scalar_type(), "bias_act_grad", [&] {
      const scalar_t *out = y.const_data_ptr<scalar_t>(), *from = dy.const_data_ptr<scalar_t>();
      scalar_t* to = dx.mutable_data_ptr<scalar_t>();
      with_packs<scalar_t>({out, from, to}, dy.numel(), dy.numel(), act, [&](auto v, auto index, auto kind) {
        using Index = decltype(index);
        using P = Pack<scalar_t, v>;
        launch(bias_act_gradient<scalar_t, v, Index, kind>, grid(dy.numel() / v), kThreads, 0,
               reinterpret_cast<const P*>(from), reinterpret_cast<const P*>(out), reinterpret_cast<P*>(to),
               Index(dy.numel() / v), Function<scalar_t>(Activation(act), gain, clamp));
      });
    });
  if (!with_bias) return {dx, at::empty({0}, dx.options())};
  // `sum` adds up in float32 what half precision has rounded dx to; reading dy and y again would be more exact, and
  // slower
  if (order == at::MemoryFormat::ChannelsLast) return {dx, dx.sum(at::IntArrayRef{0, 2, 3})};
  const int64_t planes = dx.size(0) * dx.size(1), inner = planes ? dx.numel() / planes : 0;
  return {dx, dx.view({dx.size(0), dx.size(1), inner}).sum(at::IntArrayRef{0, 2})};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) {
  m.impl("bias_act", &bias_act_cuda);
  m.impl("bias_act_grad", &bias_act_grad_cuda);
}
