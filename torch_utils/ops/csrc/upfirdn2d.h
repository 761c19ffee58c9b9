// The arithmetic of upfirdn2d on the CPU: which values and taps each output is made of, and one output row of a plane.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common.h"
#include "memory.h"
#include "simd.h"

namespace upfirdn2d {

// Output o reads inputs first, first + 1, … with the taps tap, tap + up, …: `count` of them.
struct Reads {
  int64_t first, tap, count;
};

inline std::vector<Reads> reads_of(int64_t outputs, int64_t inputs, int64_t taps, int64_t up, int64_t down,
                                   int64_t pad) {
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

// Calls f with a number of taps that the compiler knows, where it is a common one; else with 0.
template <class F>
void with_taps(int64_t taps, F f) {
  switch (taps) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 0>());
  }
}

// sum[j] = Σ_t weight[t] · from[t][j], `count` of them. T = taps, or 0 if the compiler does not know it.
template <int T, class A>
void weighted_rows(const A* const* from, const A* weight, int64_t taps, A* sum, int64_t count) {
  using V = Simd<A>;
  const int64_t n = T ? T : taps;
  int64_t j = 0;
  for (; j + V::width <= count; j += V::width) {
    typename V::Vector total = {};
    for (int64_t t = 0; t < n; t++) total += weight[t] * V::load(from[t] + j);
    V::store(sum + j, total);
  }
  for (; j < count; j++) {
    A total = 0;
    for (int64_t t = 0; t < n; t++) total += weight[t] * from[t][j];
    sum[j] = total;
  }
}

// The row filter for one phase: out[m] = Σ_t weight[t] · in[m + t], m < count; `add`ed to what is there. `in` is
// padded.
template <int T, bool add, class A, class Out>
void along(const A* in, const A* weight, int64_t taps, Out* out, int64_t count) {
  using V = Simd<A>;
  const int64_t n = T ? T : taps;
  const auto sum = [&](int64_t m) {
    typename V::Vector total = weight[0] * V::load(in + m);
    for (int64_t t = 1; t < n; t++) total += weight[t] * V::load(in + m + t);
    return total;
  };
  const auto store = [&](int64_t m, auto... how_many) {
    typename V::Vector total = sum(m);
    if constexpr (add) {
      keep_in_register(total);  // else one tap would be multiplied and added at once, which rounds differently
      total = load_as<A>(out + m, how_many...) + total;
    }
    store_as<A>(out + m, total, how_many...);
  };
  int64_t m = 0;
  for (; m + V::width <= count; m += V::width) store(m);
  if (m < count) store(m, count - m);
}

// Parts a row into every step-th value: part[d][j] = row[j · step + d].
template <class A>
void part_row(const A* row, int64_t count, int64_t step, A* part, int64_t stride) {
  using V = Simd<A>;
  int64_t j = 0;
  if (step == 2) {
    for (; 2 * (j + V::width) <= count; j += V::width) {
      const typename V::Vector first = V::load(row + 2 * j), second = V::load(row + 2 * j + V::width);
      V::store(part + j, V::even_values(first, second));
      V::store(part + stride + j, V::odd_values(first, second));
    }
  }
  for (int64_t d = 0; d < step; d++)
    for (int64_t k = j; k * step + d < count; k++) part[d * stride + k] = row[k * step + d];
}

// The other way: row[j · step + d] = part[d][j].
template <class A, class S>
void join_row(const A* part, int64_t stride, int64_t step, S* row, int64_t count) {
  using V = Simd<A>;
  int64_t j = 0;
  if (step == 2 && std::is_same_v<A, S>) {  // which the compiler does better
    for (; 2 * j + 1 < count; j++) {
      row[2 * j] = static_cast<S>(part[j]);
      row[2 * j + 1] = static_cast<S>(part[stride + j]);
    }
  } else if (step == 2) {
    for (; 2 * (j + V::width) <= count; j += V::width) {
      const typename V::Vector first = V::load(part + j), second = V::load(part + stride + j);
      store_as<A>(row + 2 * j, V::interleaved_first(first, second));
      store_as<A>(row + 2 * j + V::width, V::interleaved_second(first, second));
    }
  }
  if (j * step == count) return;
  for (int64_t d = 0; d < step; d++)
    for (int64_t k = j; k * step + d < count; k++) row[k * step + d] = static_cast<S>(part[d * stride + k]);
}

// Along a row, the outputs p + m · up (p < up, m < outputs) of one phase read neighbours: x[first + m · down], … with
// the taps tap, tap + up, …: `taps` of them.
struct Phase {
  int64_t outputs, tap, first, taps;
};

// What is read and computed for each output row, and for the outputs in a row.
template <class A>
struct Plan {
  int64_t height, width, out_height, out_width, up, down;
  std::vector<A> f, f_gain;
  std::vector<Reads> rows;
  std::vector<Phase> phases;
  int64_t margin = 0, row;  // zeros before x in a row, so that no index is negative; and its length
  int64_t part, longest;    // lengths of a row's parts, and of the outputs of one phase

  Plan(const at::Tensor& x, const at::Tensor& y, const std::vector<double>& filter, int64_t up, int64_t down,
       at::IntArrayRef padding, double gain)
      : height(x.size(2)), width(x.size(3)), out_height(y.size(2)), out_width(y.size(3)), up(up), down(down) {
    const int64_t taps = filter.size();
    for (double tap : filter) f.push_back(tap), f_gain.push_back(tap * gain);
    rows = reads_of(out_height, height, taps, up, down, padding[2]);
    int64_t reach = 0;
    for (int64_t p = 0; p < std::min(up, out_width); p++) {
      const int64_t start = p * down - padding[0], tap = ((-start) % up + up) % up, first = (start + tap) / up;
      const int64_t count = tap < taps ? (taps - 1 - tap) / up + 1 : 0, outputs = (out_width - p + up - 1) / up;
      phases.push_back({outputs, tap, first, count});
      margin = std::max(margin, -first);
      reach = std::max(reach, first + (outputs - 1) * down + count);
    }
    margin = round_up(margin, down);
    row = margin + std::max(width, reach) + Simd<A>::width;
    part = round_up((margin + std::max(width, reach)) / down + 2, Simd<A>::width) + 2 * Simd<A>::width;
    longest = round_up((out_width + up - 1) / up, Simd<A>::width);
  }
};

// Computes one output row of one plane at a time.
template <class A>
class RowFilter {
 public:
  explicit RowFilter(const Plan<A>& plan)
      : plan_(plan),
        row_(plan.row),
        parts_(plan.part * plan.down),
        sums_(plan.longest * plan.phases.size()),
        from_(plan.f.size()),
        weight_(plan.f.size()) {
    std::fill_n(row_.get(), plan.row, A(0));
    std::fill_n(parts_.get(), plan.part * plan.down, A(0));
  }

  // Output row oy of a plane, of which row `first` is at `rows`.
  template <class S>
  void compute(const A* rows, int64_t first, int64_t oy, S* out) {
    filter_columns(rows, first, plan_.rows[oy]);
    if (plan_.up == 1 && plan_.down == 1) return filter_row(plan_.phases[0], out);
    // with down > 1 a row is parted into `down` rows of every down-th value, in which each tap reads neighbours too
    if (plan_.down > 1) part_row(row_.get(), plan_.margin + plan_.width, plan_.down, parts_.get(), plan_.part);
    for (int64_t p = 0; p < int64_t(plan_.phases.size()); p++) {
      A* sums = sums_.get() + p * plan_.longest;
      plan_.down == 1 ? filter_row(plan_.phases[p], sums) : filter_parts(plan_.phases[p], sums);
    }
    if (plan_.up == 1) {
      copy_row(sums_.get(), 1, out, plan_.out_width);
    } else {
      join_row(sums_.get(), plan_.longest, plan_.up, out, plan_.out_width);
    }
  }

 private:
  void filter_columns(const A* rows, int64_t first, const Reads& read) {
    for (int64_t t = 0; t < read.count; t++) {
      from_[t] = rows + (read.first - first + t) * plan_.width;
      weight_[t] = plan_.f_gain[read.tap + t * plan_.up];
    }
    with_taps(read.count, [&](auto taps) {
      weighted_rows<taps>(from_.data(), weight_.data(), read.count, row_.get() + plan_.margin, plan_.width);
    });
  }

  template <class Out>
  void filter_row(const Phase& phase, Out* out) {
    for (int64_t t = 0; t < phase.taps; t++) weight_[t] = plan_.f[phase.tap + t * plan_.up];
    if (phase.taps == 0) {
      std::fill_n(out, phase.outputs, Out(0));
      return;
    }
    with_taps(phase.taps, [&](auto taps) {
      along<taps, false>(row_.get() + plan_.margin + phase.first, weight_.data(), phase.taps, out, phase.outputs);
    });
  }

  void filter_parts(const Phase& phase, A* sums) {
    std::fill_n(sums, phase.outputs, A(0));
    for (int64_t d = 0; d < plan_.down && d < phase.taps; d++) {
      // the taps d, d + down, … of this phase read neighbours in the part of index (margin + first + d) mod down
      const int64_t index = plan_.margin + phase.first + d, count = (phase.taps - 1 - d) / plan_.down + 1;
      for (int64_t t = 0; t < count; t++) weight_[t] = plan_.f[phase.tap + (d + t * plan_.down) * plan_.up];
      const A* in = parts_.get() + index % plan_.down * plan_.part + index / plan_.down;
      with_taps(count, [&](auto taps) { along<taps, true>(in, weight_.data(), count, sums, phase.outputs); });
    }
  }

  const Plan<A>& plan_;
  Scratch<A> row_, parts_, sums_;
  std::vector<const A*> from_;
  std::vector<A> weight_;
};

}  // namespace upfirdn2d
