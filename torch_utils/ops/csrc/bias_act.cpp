// Bias, activation, gain and clamp on the CPU, in one pass; and its gradient, from what came out.
//
//   y = clamp(gain · act(x + b))
//   dx = dy · gain · act'      where y is inside the clamp, else 0;   db = Σ dx

#include "simd.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

namespace {

constexpr double kSlope = 0.2;

// Planes of one n and c beside each other in memory: `inner` values each.
struct Planes {
  int64_t count, channels, inner;
  explicit Planes(const at::Tensor& x)
      : count(x.size(0) * x.size(1)), channels(x.size(1)), inner(x.numel() / std::max<int64_t>(count, 1)) {}
  int64_t grain() const { return 1 + (1 << 15) / inner; }
};

// The clamp as it comes out in the type of y; infinite for none.
template <class S>
Accumulate<S> limit(double clamp) {
  if (clamp < 0) return std::numeric_limits<Accumulate<S>>::infinity();
  return static_cast<Accumulate<S>>(static_cast<S>(clamp));
}

template <class A>
using Vector = typename Simd<A>::Vector;

// leaky ReLU with any slope: 1 is linear, 0 ReLU
template <class A>
Vector<A> activate(Vector<A> x, A slope, A gain, A clamp) {
  // −∞ times the slope 0 of ReLU would be no number
  Vector<A> y = (x <= 0 ? (slope == 0 ? Vector<A>{} : x * slope) : x) * gain;
  y = y > clamp ? Vector<A>{} + clamp : y;
  return y < -clamp ? Vector<A>{} - clamp : y;
}

template <class A>
Vector<A> curve(Activation act, Vector<A> x, A gain, A clamp) {
  for (int64_t k = 0; k < Simd<A>::width; k++) {
    const A y = act == kSigmoid ? A(1) / (A(1) + std::exp(-x[k])) : std::tanh(x[k]);
    x[k] = std::clamp(gain * y, -clamp, clamp);
  }
  return x;
}

template <class S>
void forward(const at::Tensor& x_, const S* bias, Activation act, double gain_, double clamp_, at::Tensor& y_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const Planes planes(x_);
  const S* x = x_.const_data_ptr<S>();
  S* y = y_.mutable_data_ptr<S>();
  const A gain = gain_, clamp = limit<S>(clamp_);
  const A slope = act == kLinear ? 1 : act == kRelu ? 0 : kSlope;
  const bool curved = act == kSigmoid || act == kTanh;
  at::parallel_for(0, planes.count, planes.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
      const A b = bias ? static_cast<A>(bias[plane % planes.channels]) : A(0);
      const S* from = x + plane * planes.inner;
      S* to = y + plane * planes.inner;
      const auto each = [&](int64_t j, int64_t count) {
        const Vector<A> value = load_as<A>(from + j, count) + b;
        store_as<A>(to + j, curved ? curve<A>(act, value, gain, clamp) : activate<A>(value, slope, gain, clamp), count);
      };
      int64_t j = 0;
      for (; j + V::width <= planes.inner; j += V::width) each(j, V::width);
      if (j < planes.inner) each(j, planes.inner - j);
    }
  });
}

// The derivative of y by x, from y.
template <class A>
Vector<A> derivative(Vector<A> y, Activation act, A slope, A gain, A clamp) {
  Vector<A> d;
  if (act == kSigmoid) {
    d = y * (A(1) - y / gain);
  } else if (act == kTanh) {
    d = gain - y * y / gain;
  } else {
    d = (gain > 0 ? y > 0 : y < 0) ? Vector<A>{} + gain : Vector<A>{} + gain * slope;
  }
  if (clamp == std::numeric_limits<A>::infinity()) return d;
  return (y >= clamp) | (y <= -clamp) ? Vector<A>{} : d;
}

template <class S>
void gradient(const at::Tensor& dy_, const at::Tensor& y_, Activation act, double gain_, double clamp_,
              at::Tensor& dx_, at::Tensor& sums) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const Planes planes(dy_);
  const S *dy = dy_.const_data_ptr<S>(), *y = y_.const_data_ptr<S>();
  S* dx = dx_.mutable_data_ptr<S>();
  double* db = sums.mutable_data_ptr<double>();
  const A gain = gain_, clamp = limit<S>(clamp_);
  const A slope = act == kLinear ? 1 : act == kRelu ? 0 : kSlope;
  at::parallel_for(0, planes.count, planes.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
      const int64_t offset = plane * planes.inner;
      const auto each = [&](int64_t j, int64_t count) {
        const Vector<A> slopes = derivative<A>(load_as<A>(y + offset + j, count), act, slope, gain, clamp);
        const Vector<A> d = load_as<A>(dy + offset + j, count) * slopes;
        store_as<A>(dx + offset + j, d, count);
        return d;
      };
      double total = 0;
      int64_t j = 0;
      while (j + V::width <= planes.inner) {
        Vector<A> part = {};  // of 64 vectors, then in float64
        for (int64_t v = 0; v < 64 && j + V::width <= planes.inner; v++, j += V::width) part += each(j, V::width);
        total += V::sum(part);
      }
      if (j < planes.inner) total += V::sum(each(j, planes.inner - j));
      db[plane] = total;
    }
  });
}

at::Tensor bias_act_cpu(const at::Tensor& x_, const std::optional<at::Tensor>& bias_, int64_t act, double gain,
                        double clamp) {
  check_bias_act(x_, act, gain);
  const at::Tensor x = x_.contiguous(), bias = check_bias(x_, bias_);
  at::Tensor y = empty_output(x.sizes(), x.options());
  if (y.numel() == 0) return y;
  DISPATCH_FLOATING(x.scalar_type(), "bias_act", [&] {
    forward<scalar_t>(x, bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr, Activation(act), gain, clamp, y);
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_act_grad_cpu(const at::Tensor& dy_, const at::Tensor& y_, int64_t act,
                                                     double gain, double clamp) {
  check_bias_act(dy_, act, gain);
  check_like(dy_, y_, "y", "dy");
  const at::Tensor dy = dy_.contiguous(), y = y_.contiguous();
  at::Tensor dx = empty_output(dy.sizes(), dy.options());
  at::Tensor sums = at::zeros({dy.size(0), dy.size(1)}, dy.options().dtype(at::kDouble));
  if (dx.numel() > 0)
    DISPATCH_FLOATING(dy.scalar_type(), "bias_act_grad",
                      [&] { gradient<scalar_t>(dy, y, Activation(act), gain, clamp, dx, sums); });
  return {dx, sums.sum(0).to(dy.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) {
  m.impl("bias_act", &bias_act_cpu);
  m.impl("bias_act_grad", &bias_act_grad_cpu);
}
