// Bias, activation, gain and clamp on the CPU, in one pass; and its gradient, from what came out.
//
//   y = clamp(gain · act(x + b))
//   dx = dy · gain · act'      where y is inside the clamp, else 0;   db = Σ dx

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common.h"
#include "memory.h"
#include "simd.h"

namespace {

constexpr double kSlope = 0.2;
constexpr int64_t kVectors = 64;           // whose sum is taken before it goes into a float64; a strip of a plane
constexpr int64_t kMinimalWork = 1 << 15;  // values that are worth a thread
constexpr int64_t kChunk = 1 << 16;        // about so many values in channels-last memory have sums of their own

template <class A>
using Vector = typename Simd<A>::Vector;

// The function, for values of the type S.
template <class S>
struct Function {
  using A = Accumulate<S>;
  Activation act;
  A slope, gain, clamp;  // the clamp as it comes out in the type of y; infinite for none

  Function(Activation act, double gain, double clamp)
      : act(act),
        slope(act == kLinear ? 1
              : act == kRelu ? 0
                             : kSlope),
        gain(gain),
        clamp(clamp < 0 ? std::numeric_limits<A>::infinity() : static_cast<A>(static_cast<S>(clamp))) {}

  bool curved() const { return act == kSigmoid || act == kTanh; }

  // y from x + b; where `curved`, of the sigmoid and tanh, and else of a leaky ReLU with any slope (1: linear, 0: ReLU)
  template <bool curved>
  Vector<A> value(Vector<A> x) const {
    if constexpr (curved) {
      for (int64_t k = 0; k < Simd<A>::width; k++) {
        const A y = act == kSigmoid ? A(1) / (A(1) + std::exp(-x[k])) : std::tanh(x[k]);
        x[k] = std::clamp(gain * y, -clamp, clamp);
      }
      return x;
    }
    // −∞ times the slope 0 of ReLU would be no number
    Vector<A> y = (x <= 0 ? (slope == 0 ? Vector<A>{} : x * slope) : x) * gain;
    y = y > clamp ? Vector<A>{} + clamp : y;
    return y < -clamp ? Vector<A>{} - clamp : y;
  }

  // dx from dy and y. Nothing passes where the clamp cuts, whatever dy is. At NaN as PyTorch: it is not inside a clamp;
  // ReLU passes what comes to it, the leaky one as for negative numbers; the slope of a sigmoid is NaN.
  template <bool curved>
  Vector<A> gradient(Vector<A> dy, Vector<A> y) const {
    const Vector<A> zero = {};
    if constexpr (curved) {
      const Vector<A> dx = dy * (act == kSigmoid ? y * (A(1) - y / gain) : gain - y * y / gain);
      if (clamp == std::numeric_limits<A>::infinity()) return dx;
      return (y >= clamp) | (y <= -clamp) ? zero : dx;
    }
    const auto positive = gain > 0 ? y > 0 : y < 0;
    const Vector<A> dx =
        slope == 0 ? (positive | (y != y) ? dy * gain : zero) : dy * (positive ? zero + gain : zero + gain * slope);
    if (clamp == std::numeric_limits<A>::infinity()) return dx;
    return (y < clamp) & (y > -clamp) ? dx : zero;
  }
};

// x [N, C, ...] as N · C planes of `inner` values, or as N · inner pixels of C values. Vectors [N, C] are the pixels of
// one image.
struct Shape {
  int64_t samples, channels, inner;
  bool pixels;
  explicit Shape(const at::Tensor& x)
      : samples(x.size(0)),
        channels(x.size(1)),
        inner(x.numel() / std::max<int64_t>(samples * channels, 1)),
        pixels(inner == 1 || order_of(x) == at::MemoryFormat::ChannelsLast) {
    if (inner == 1) std::swap(samples, inner);
  }
};

// Calls f(plane, first value, count, values) for strips of all planes of x. Where x is channels-last, the values of a
// strip are turned into planes in scratch memory before.
template <class S, class F>
void for_strips(const Shape& shape, const S* x, bool channels_last, F f) {
  using A = Accumulate<S>;
  constexpr int64_t length = kVectors * Simd<A>::width, stride = length + Simd<A>::width;
  const int64_t at_once = channels_last ? Simd<A>::width : 1, blocks = (shape.channels + at_once - 1) / at_once;
  const int64_t grain = 1 + kMinimalWork / (shape.inner * at_once);
  at::parallel_for(0, shape.samples * blocks, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(channels_last ? at_once * stride : 0);
    for (int64_t job = begin; job < end; job++) {
      const int64_t n = job / blocks, c = job % blocks * at_once, plane = n * shape.channels + c;
      const int64_t planes = std::min(at_once, shape.channels - c);
      for (int64_t first = 0; first < shape.inner; first += length) {
        const int64_t count = std::min(length, shape.inner - first);
        if (!channels_last) {
          f(plane, first, count, x + plane * shape.inner + first);
          continue;
        }
        const S* pixels = x + (n * shape.inner + first) * shape.channels + c;
        transpose<A>(pixels, shape.channels, count, planes, scratch.get(), stride);
        for (int64_t k = 0; k < planes; k++) f(plane + k, first, count, scratch.get() + k * stride);
      }
    }
  });
}

// How pixels of C values are cut into chunks, and these into periods: whole pixels that are whole vectors as well.
struct Chunks {
  int64_t period, pixels, per_sample, count;
  Chunks(const Shape& shape, int64_t lanes) : period(std::lcm(std::max<int64_t>(shape.channels, 1), lanes)) {
    const int64_t channels = std::max<int64_t>(shape.channels, 1);
    pixels = round_up(std::max<int64_t>(kChunk / channels, 1), period / channels);
    per_sample = (shape.inner + pixels - 1) / pixels, count = shape.samples * per_sample;
  }
};

// The same for pixels: calls f(chunk, first value, count, values) for chunks of all of x, in channels-last order; where
// x is in planes, they are turned into pixels before.
template <class S, class F>
void for_chunks(const Shape& shape, const Chunks& chunks, const S* x, bool planes, F f) {
  using A = Accumulate<S>;
  const int64_t channels = shape.channels, grain = 1 + kMinimalWork / (chunks.pixels * channels);
  at::parallel_for(0, chunks.count, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(planes ? chunks.pixels * channels : 0);
    for (int64_t chunk = begin; chunk < end; chunk++) {
      const int64_t n = chunk / chunks.per_sample, pixel = chunk % chunks.per_sample * chunks.pixels;
      const int64_t count = std::min(chunks.pixels, shape.inner - pixel);
      const int64_t first = (n * shape.inner + pixel) * channels;
      if (!planes) {
        f(chunk, first, count * channels, x + first);
        continue;
      }
      transpose<A>(x + n * channels * shape.inner + pixel, shape.inner, channels, count, scratch.get(), channels);
      f(chunk, first, count * channels, scratch.get());
    }
  });
}

// Calls f(value, column, how many) for whole vectors of values in rows of `period`, and for what is left.
template <class A, class F>
void for_vectors(int64_t count, int64_t period, F f) {
  constexpr int64_t width = Simd<A>::width;
  int64_t at = 0;
  while (at + width <= count)
    for (int64_t column = 0; column < period && at + width <= count; column += width, at += width) f(at, column);
  if (at < count) f(at, at % period, count - at);
}

// --- forward ---------------------------------------------------------------------------------------------------------

template <bool curved, class S>
void forward_planes(const Shape& shape, const S* x, const S* bias, const Function<S>& function, S* y) {
  using A = Accumulate<S>;
  for_strips(shape, x, false, [&](int64_t plane, int64_t first, int64_t count, const auto* from) {
    const A b = bias ? static_cast<A>(bias[plane % shape.channels]) : A(0);
    S* to = y + plane * shape.inner + first;
    for_vectors<A>(count, count, [&](int64_t at, int64_t, auto... how_many) {
      const Vector<A> value = load_as<A>(from + at, how_many...) + b;
      store_as<A>(to + at, function.template value<curved>(value), how_many...);
    });
  });
}

template <bool curved, class S>
void forward_pixels(const Shape& shape, const S* x, const S* bias, const Function<S>& function, S* y) {
  using A = Accumulate<S>;
  const Chunks chunks(shape, Simd<A>::width);
  std::vector<A> biases(chunks.period);
  for (int64_t j = 0; j < chunks.period && bias; j++) biases[j] = static_cast<A>(bias[j % shape.channels]);
  for_chunks(shape, chunks, x, false, [&](int64_t, int64_t first, int64_t count, const auto* from) {
    for_vectors<A>(count, chunks.period, [&](int64_t at, int64_t column, auto... how_many) {
      const Vector<A> value = load_as<A>(from + at, how_many...) + Simd<A>::load(biases.data() + column);
      store_as<A>(y + first + at, function.template value<curved>(value), how_many...);
    });
  });
}

at::Tensor bias_act_cpu(const at::Tensor& x_, const std::optional<at::Tensor>& bias_, int64_t act, double gain,
                        double clamp) {
  check_bias_act(x_, act, gain);
  const at::Tensor x = x_.contiguous(order_of(x_)), bias = check_bias(x_, bias_);
  at::Tensor y = empty_output(x.sizes(), x.options(), order_of(x));
  if (y.numel() == 0) return y;
  DISPATCH_FLOATING(x.scalar_type(), "bias_act", [&] {
    const Function<scalar_t> function(Activation(act), gain, clamp);
    const Shape shape(x);
    const scalar_t* b = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    const auto run = [&](auto curved) {
      const scalar_t* from = x.const_data_ptr<scalar_t>();
      scalar_t* to = y.mutable_data_ptr<scalar_t>();
      shape.pixels ? forward_pixels<curved>(shape, from, b, function, to)
                   : forward_planes<curved>(shape, from, b, function, to);
    };
    function.curved() ? run(std::true_type()) : run(std::false_type());
  });
  return y;
}

// --- gradient --------------------------------------------------------------------------------------------------------

// `sums` [N · C] are those of dx over each plane.
template <bool curved, class S>
void gradient_planes(const Shape& shape, const S* dy, bool channels_last, const S* y, const Function<S>& function,
                     S* dx, double* sums) {
  using A = Accumulate<S>;
  for_strips(shape, dy, channels_last, [&](int64_t plane, int64_t first, int64_t count, const auto* from) {
    const int64_t offset = plane * shape.inner + first;
    Vector<A> whole = {}, rest = {};
    for_vectors<A>(count, count, [&](int64_t at, int64_t, auto... how_many) {
      const Vector<A> d = function.template gradient<curved>(load_as<A>(from + at, how_many...),
                                                             load_as<A>(y + offset + at, how_many...));
      store_as<A>(dx + offset + at, d, how_many...);
      sizeof...(how_many) == 0 ? whole += d : rest += d;
    });
    sums[plane] += Simd<A>::sum(whole);
    if (count % Simd<A>::width) sums[plane] += Simd<A>::sum(rest);
  });
}

// `sums` [chunks, C] are those of dx over each chunk.
template <bool curved, class S>
void gradient_pixels(const Shape& shape, const Chunks& chunks, const S* dy, bool planes, const S* y,
                     const Function<S>& function, S* dx, double* sums) {
  using A = Accumulate<S>;
  for_chunks(shape, chunks, dy, planes, [&](int64_t chunk, int64_t first, int64_t count, const auto* from) {
    double* total = sums + chunk * shape.channels;
    std::vector<A> part(chunks.period);
    const int64_t block = kVectors * chunks.period;
    for (int64_t begin = 0; begin < count; begin += block) {
      for_vectors<A>(std::min(block, count - begin), chunks.period, [&](int64_t at, int64_t column, auto... how_many) {
        const int64_t offset = first + begin + at;
        const Vector<A> d = function.template gradient<curved>(load_as<A>(from + begin + at, how_many...),
                                                               load_as<A>(y + offset, how_many...));
        store_as<A>(dx + offset, d, how_many...);
        Simd<A>::store(part.data() + column, Simd<A>::load(part.data() + column) + d);
      });
      for (int64_t j = 0; j < chunks.period; j++) total[j % shape.channels] += part[j];
      std::fill(part.begin(), part.end(), A(0));
    }
  });
}

std::tuple<at::Tensor, at::Tensor> bias_act_grad_cpu(const at::Tensor& dy_, const at::Tensor& y_, int64_t act,
                                                     double gain, double clamp, bool with_bias) {
  check_bias_act(dy_, act, gain);
  check_like(dy_, y_, "y", "dy");
  const at::MemoryFormat order = order_of(y_);
  const at::Tensor dy = dy_.contiguous(order_of(dy_)), y = y_.contiguous(order);
  at::Tensor dx = empty_output(dy.sizes(), dy.options(), order), sums;
  DISPATCH_FLOATING(dy.scalar_type(), "bias_act_grad", [&] {
    const Function<scalar_t> function(Activation(act), gain, clamp);
    const Shape shape(y);
    const bool dy_pixels = Shape(dy).pixels;
    const Chunks chunks(shape, Simd<Accumulate<scalar_t>>::width);
    sums = at::zeros({shape.pixels ? chunks.count : shape.samples, shape.channels}, dy.options().dtype(at::kDouble));
    if (dx.numel() == 0) return;
    const auto run = [&](auto curved) {
      const scalar_t *from = dy.const_data_ptr<scalar_t>(), *out = y.const_data_ptr<scalar_t>();
      scalar_t* to = dx.mutable_data_ptr<scalar_t>();
      double* total = sums.mutable_data_ptr<double>();
      if (shape.pixels) {
        gradient_pixels<curved>(shape, chunks, from, !dy_pixels, out, function, to, total);
      } else {
        gradient_planes<curved>(shape, from, dy_pixels, out, function, to, total);
      }
    };
    function.curved() ? run(std::true_type()) : run(std::false_type());
  });
  return {dx, with_bias ? sums.sum(0).to(dy.scalar_type()) : at::empty({0}, dy.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) {
  m.impl("bias_act", &bias_act_cpu);
  m.impl("bias_act_grad", &bias_act_grad_cpu);
}
