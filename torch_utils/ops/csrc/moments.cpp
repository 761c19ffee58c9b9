// Mean and variance of every plane on the CPU, in one pass: what instance normalization needs.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "common.h"
#include "memory.h"
#include "simd.h"

namespace {

// A plane is read in several places at once: one stream alone waits for memory most of the time. The hardware's own
// fetching ahead ends with each page, hence ours.
constexpr int kStreams = 4;
constexpr int64_t kAhead = 4096;  // bytes

template <class S>
void moments(const at::Tensor& x_, at::Tensor& mean_, at::Tensor& var_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const int64_t planes = x_.size(0) * x_.size(1), inner = x_.size(2) * x_.size(3);
  const S* x = x_.const_data_ptr<S>();
  S *mean = mean_.mutable_data_ptr<S>(), *var = var_.mutable_data_ptr<S>();
  at::parallel_for(0, planes, 1 + (1 << 15) / inner, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
      const S* from = x + plane * inner;
      const A origin = moments_origin(from, inner);
      double sum = 0, squares = 0;
      const int64_t part = inner / (kStreams * V::width) * V::width;
      for (int64_t j = 0; j < part;) {
        typename V::Vector s[kStreams] = {}, q[kStreams] = {};  // of 32 vectors, then in float64
        for (int64_t v = 0; v < 32 && j < part; v++, j += V::width) {
          for (int k = 0; k < kStreams; k++) {
            const S* at = from + k * part + j;
            __builtin_prefetch(at + kAhead / int64_t(sizeof(S)));
            const typename V::Vector d = load_as<A>(at) - origin;
            s[k] += d, q[k] += d * d;
          }
        }
        sum += V::sum(s[0] + s[1] + s[2] + s[3]), squares += V::sum(q[0] + q[1] + q[2] + q[3]);
      }
      for (int64_t j = kStreams * part; j < inner; j++) {
        const double d = static_cast<A>(from[j]) - origin;
        sum += d, squares += d * d;
      }
      const double shift = sum / inner;
      mean[plane] = static_cast<S>(origin + shift);
      var[plane] = static_cast<S>(std::max(squares / inner - shift * shift, 0.0));
    }
  });
}

// The same of channels-last memory: the sums of `kVectors` vectors of channels at a time, over all pixels of a sample.
template <class S, int kVectors>
void sums_over_pixels(const S* x, int64_t channels, int64_t count, int64_t pixels, S* mean, S* var) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  constexpr int64_t lanes = kVectors * V::width;
  A origin[lanes] = {};
  double sum[lanes] = {}, squares[lanes] = {};
  for (int64_t c = 0; c < count; c++) origin[c] = moments_origin(x + c, pixels, channels);
  const auto block = [&](int64_t begin, int64_t end, auto load) {  // in float64 after each
    typename V::Vector s[kVectors] = {}, q[kVectors] = {};
    for (int64_t p = begin; p < end; p++)
      for (int k = 0; k < kVectors; k++) {
        const typename V::Vector d = load(x + p * channels, k) - V::load(origin + k * V::width);
        s[k] += d, q[k] += d * d;
      }
    for (int64_t c = 0; c < lanes; c++) {
      sum[c] += s[c / V::width][c % V::width];
      squares[c] += q[c / V::width][c % V::width];
    }
  };
  constexpr int64_t kBlock = 128;  // pixels
  for (int64_t p = 0; p < pixels; p += kBlock) {
    const int64_t end = std::min(p + kBlock, pixels);
    if (count == lanes) {
      block(p, end, [](const S* at, int k) { return load_as<A>(at + k * V::width); });
    } else {
      block(p, end, [&](const S* at, int k) {
        const int64_t rest = count - k * V::width;
        return rest > 0 ? load_as<A>(at + k * V::width, std::min<int64_t>(rest, V::width)) : typename V::Vector{};
      });
    }
  }
  for (int64_t c = 0; c < count; c++) {
    const double shift = sum[c] / pixels;
    mean[c] = static_cast<S>(origin[c] + shift);
    var[c] = static_cast<S>(std::max(squares[c] / pixels - shift * shift, 0.0));
  }
}

template <class S>
void moments_last(const at::Tensor& x_, at::Tensor& mean_, at::Tensor& var_) {
  constexpr int kVectors = 4;
  constexpr int64_t lanes = kVectors * Simd<Accumulate<S>>::width;
  const int64_t channels = x_.size(1), pixels = x_.size(2) * x_.size(3), blocks = (channels + lanes - 1) / lanes;
  const S* x = x_.const_data_ptr<S>();
  S *mean = mean_.mutable_data_ptr<S>(), *var = var_.mutable_data_ptr<S>();
  at::parallel_for(0, x_.size(0) * blocks, 1 + (1 << 10) / pixels, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; job++) {
      const int64_t n = job / blocks, c = job % blocks * lanes, at = n * channels + c;
      sums_over_pixels<S, kVectors>(x + n * pixels * channels + c, channels, std::min(lanes, channels - c), pixels,
                                    mean + at, var + at);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> moments_cpu(const at::Tensor& x) {
  check_moments(x);
  at::Tensor mean = at::empty({x.size(0), x.size(1)}, x.options()), var = at::empty(mean.sizes(), x.options());
  const bool last = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  if (mean.numel() > 0)
    DISPATCH_FLOATING(x.scalar_type(), "moments", [&] {
      last ? moments_last<scalar_t>(x, mean, var) : moments<scalar_t>(x.contiguous(), mean, var);
    });
  return {mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("moments", &moments_cpu); }
