// Upsample, filter, downsample on the CPU, for separable filters: down the columns first, then along the rows.
//
//   y[oy, ox] = gain · Σ_ty Σ_tx f[ty] · f[tx] · u[oy·down + ty − top, ox·down + tx − left],   u: x with zeros between
//
// Only taps that meet no inserted zero are computed. A job is one plane and a strip of its output rows.

#include "simd.h"

#include <torch/library.h>

#include <vector>

namespace {

// Output o reads inputs first, first + 1, … with the taps tap, tap + up, …: `count` of them.
struct Reads {
  int64_t first, tap, count;
};

std::vector<Reads> reads_of(int64_t outputs, int64_t inputs, int64_t taps, int64_t up, int64_t down, int64_t pad) {
  std::vector<Reads> reads(outputs);
  for (int64_t o = 0; o < outputs; o++) {
    // tap t falls on value (o·down + t − pad) / up of x where that divides
    const int64_t start = o * down - pad;
    int64_t tap = ((-start) % up + up) % up;
    int64_t first = (start + tap) / up;
    if (first < 0) tap += -first * up, first = 0;
    int64_t count = tap < taps ? (taps - 1 - tap) / up + 1 : 0;
    reads[o] = {first, tap, std::clamp<int64_t>(inputs - first, 0, count)};
  }
  return reads;
}

// sum[j] = Σ_t weight[t] · from[t][j], `count` of them.
template <class A>
void weighted_rows(const A* const* from, const A* weight, int64_t taps, A* sum, int64_t count) {
  using V = Simd<A>;
  int64_t j = 0;
  for (; j + V::width <= count; j += V::width) {
    typename V::Vector total = {};
    for (int64_t t = 0; t < taps; t++) total += weight[t] * V::load(from[t] + j);
    V::store(sum + j, total);
  }
  for (; j < count; j++) {
    A total = 0;
    for (int64_t t = 0; t < taps; t++) total += weight[t] * from[t][j];
    sum[j] = total;
  }
}

// The row filter for one phase: out[m] = Σ_t weight[t] · in[m + t], m < count, for `taps` neighbours known to the
// compiler (0: not known).
template <class A, int T>
void along(const A* in, const A* weight, int64_t taps, A* out, int64_t count) {
  using V = Simd<A>;
  const int64_t n = T ? T : taps;
  for (int64_t m = 0; m < count; m += V::width) {  // in and out are padded
    typename V::Vector total = weight[0] * V::load(in + m);
    for (int64_t t = 1; t < n; t++) total += weight[t] * V::load(in + m + t);
    V::store(out + m, total);
  }
}

template <class A>
void along(const A* in, const A* weight, int64_t taps, A* out, int64_t count) {
  switch (taps) {
    case 2: return along<A, 2>(in, weight, taps, out, count);
    case 4: return along<A, 4>(in, weight, taps, out, count);
    default: return along<A, 0>(in, weight, taps, out, count);
  }
}

// Parts a row into every step-th value: part[d][j] = row[j · step + d]. Two are what vectors can be shuffled into.
template <class A>
void part_row(const A* row, int64_t count, int64_t step, A* part, int64_t stride) {
  if (step == 2) {
    for (int64_t j = 0; j < count / 2; j++) {
      part[j] = row[2 * j];
      part[stride + j] = row[2 * j + 1];
    }
    if (count % 2) part[count / 2] = row[count - 1];
    return;
  }
  for (int64_t d = 0; d < step; d++)
    for (int64_t j = 0; j * step + d < count; j++) part[d * stride + j] = row[j * step + d];
}

// The other way: row[j · step + d] = part[d][j].
template <class A, class S>
void join_row(const A* part, int64_t stride, int64_t step, S* row, int64_t count) {
  if (step == 2) {
    const A* second = part + stride;
    for (int64_t j = 0; j < count / 2; j++) {
      row[2 * j] = static_cast<S>(part[j]);
      row[2 * j + 1] = static_cast<S>(second[j]);
    }
    if (count % 2) row[count - 1] = static_cast<S>(part[count / 2]);
    return;
  }
  for (int64_t d = 0; d < step; d++)
    for (int64_t j = 0; j * step + d < count; j++) row[j * step + d] = static_cast<S>(part[d * stride + j]);
}

template <class S>
void upfirdn2d(const at::Tensor& x_, const std::vector<double>& taps_, int64_t up, int64_t down,
               at::IntArrayRef padding, double gain, at::Tensor& y_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const int64_t height = x_.size(2), width = x_.size(3), out_height = y_.size(2), out_width = y_.size(3);
  const int64_t planes = x_.size(0) * x_.size(1), taps = taps_.size();
  const S* x = x_.const_data_ptr<S>();
  S* y = y_.mutable_data_ptr<S>();
  const auto rows = reads_of(out_height, height, taps, up, down, padding[2]);

  std::vector<A> f(taps), f_gain(taps);
  for (int64_t t = 0; t < taps; t++) f[t] = taps_[t], f_gain[t] = taps_[t] * gain;

  // Along a row, the outputs ox = p + m·up (p < up) of one phase read neighbours: x[base + m·down + …] with taps of
  // one phase. With down > 1 the row is first parted into `down` rows of every down-th value, so that each tap reads
  // neighbours too.
  struct Phase {
    int64_t outputs, tap, first, taps;
  };
  std::vector<Phase> phases;
  int64_t margin = 0, reach = 0;
  for (int64_t p = 0; p < std::min(up, out_width); p++) {
    const int64_t start = p * down - padding[0], tap = ((-start) % up + up) % up, first = (start + tap) / up;
    const int64_t count = tap < taps ? (taps - 1 - tap) / up + 1 : 0, outputs = (out_width - p + up - 1) / up;
    phases.push_back({outputs, tap, first, count});
    margin = std::max(margin, -first);
    reach = std::max(reach, first + (outputs - 1) * down + count);
  }
  margin = round_up(std::max<int64_t>(margin, 0), down);  // zeros before x in a row, so that no index is negative
  const int64_t part = round_up((margin + std::max(width, reach)) / down + 2, V::width) + 2 * V::width;
  const int64_t longest = round_up((out_width + up - 1) / up, V::width);
  const int64_t grain = 1 + (1 << 15) / (out_height * out_width);
  at::parallel_for(0, planes, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> row(margin + std::max(width, reach) + V::width), parted(part * down), sums(longest * (phases.size() + 1)),
        plane(std::is_same_v<S, A> ? 1 : height * width);
    std::fill_n(row.get(), margin + std::max(width, reach) + V::width, A(0));
    std::fill_n(parted.get(), part * down, A(0));
    std::vector<const A*> from(taps);
    std::vector<A> weight(taps), w(taps);
    for (int64_t job = begin; job < end; job++) {
      const A* source;
      if constexpr (std::is_same_v<S, A>) {
        source = x + job * height * width;
      } else {
        copy_row(x + job * height * width, 1, plane.get(), height * width);
        source = plane.get();
      }
      for (int64_t oy = 0; oy < out_height; oy++) {
        const Reads& read = rows[oy];
        for (int64_t t = 0; t < read.count; t++) {
          from[t] = source + (read.first + t) * width;
          weight[t] = f_gain[read.tap + t * up];
        }
        weighted_rows(from.data(), weight.data(), read.count, row.get() + margin, width);
        const A* in = row.get();
        if (down > 1) {
          part_row(in, margin + width, down, parted.get(), part);
        }
        for (int64_t p = 0; p < int64_t(phases.size()); p++) {
          const Phase& phase = phases[p];
          A* out = sums.get() + p * longest;
          if (down == 1) {
            for (int64_t t = 0; t < phase.taps; t++) w[t] = f[phase.tap + t * up];
            if (phase.taps == 0)
              std::fill_n(out, longest, A(0));
            else
              along(in + margin + phase.first, w.data(), phase.taps, out, phase.outputs);
            continue;
          }
          std::fill_n(out, longest, A(0));
          for (int64_t d = 0; d < down && d < phase.taps; d++) {
            // taps d, d + down, … of this phase read neighbours in the part of index (margin + first + d) mod down
            const int64_t index = margin + phase.first + d, count = (phase.taps - 1 - d) / down + 1;
            for (int64_t t = 0; t < count; t++) w[t] = f[phase.tap + (d + t * down) * up];
            A* sum = sums.get() + longest * phases.size();
            along(parted.get() + index % down * part + index / down, w.data(), count, sum, phase.outputs);
            for (int64_t m = 0; m < longest; m += V::width) V::store(out + m, V::load(out + m) + V::load(sum + m));
          }
        }
        S* out = y + (job * out_height + oy) * out_width;
        if (up == 1)
          copy_row(sums.get(), 1, out, out_width);
        else
          join_row(sums.get(), longest, up, out, out_width);
      }
    }
  });
}

at::Tensor upfirdn2d_cpu(const at::Tensor& x, const at::Tensor& f, int64_t up, int64_t down, at::IntArrayRef padding,
                         double gain) {
  const auto [height, width] = check_upfirdn2d(x, f, up, down, padding);
  const int64_t taps = f.numel();
  at::Tensor y = empty_output({x.size(0), x.size(1), height, width}, x.options());
  if (y.numel() == 0) return y;
  if (x.numel() == 0) return y.zero_();
  const at::Tensor values = f.to(at::kDouble).contiguous();
  const std::vector<double> list(values.const_data_ptr<double>(), values.const_data_ptr<double>() + taps);
  DISPATCH_FLOATING(x.scalar_type(), "upfirdn2d",
                    [&] { upfirdn2d<scalar_t>(planes(x), list, up, down, padding, gain, y); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("upfirdn2d", &upfirdn2d_cpu); }
