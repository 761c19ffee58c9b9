// AdaConv's gradient by the kernel on the CPU: dK[n,o,i] = x[n,i] ⋆ dy[n,o], a correlation over all pixels.
//
// A job is one group of one sample, and where these are few, a part of the rows. (For channels-last memory see
// adaconv_pixels.h.)
// For every pair of channels and every tap a vector of sums is kept; they are added up in float64 after a certain
// number of additions. What is not in the type of the arithmetic, has strides or has rows of other sizes than whole
// vectors, is copied to scratch memory.

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "adaconv.h"
#include "adaconv_pixels.h"
#include "common.h"
#include "simd.h"

namespace {

using adaconv::for_blocks;
using adaconv::Image;

constexpr int64_t kInnerBytes = 16 << 10;                 // rows of four planes of dy: half of a small L1 cache
constexpr int kOutputs = kVectorRegisters >= 32 ? 8 : 4;  // of a group, whose sums of three taps fill the registers
constexpr int64_t kFlush = 1024;                          // additions to one float32 before it goes into a float64

// Some rows of an x and of O outputs' dy that are to be correlated. `x` is below the middle tap; a row of x is aligned
// as dy is, and what lies left and right of it is its halo, or `in_place`, memory of something else, in place of which
// there are zeros.
template <class A>
struct Pair {
  const A *x, *dy;
  int64_t x_plane, x_row, dy_plane, dy_row;
  int64_t rows = 0, vectors = 0;
  int64_t sums_o = 0;  // values from one output's sums to the next
  adaconv::Next next;  // rows that will be wanted soon
};

// One tap: adds dy[o] · x, moved by `shift` columns, to O vectors of sums.
template <class A, int O>
void correlate_tap(const Pair<A>& w, int64_t shift, A* sums) {
  using V = Simd<A>;
  typename V::Vector sum[O];
  for (int o = 0; o < O; o++) sum[o] = V::load(sums + o * w.sums_o);
  for (int64_t r = 0; r < w.rows; r++) {
    const A *x = w.x + r * w.x_row + shift, *dy = w.dy + r * w.dy_row;
    for (int64_t v = 0; v < w.vectors; v++, x += V::width, dy += V::width) {
      const typename V::Vector pixels = V::load(x);
      for (int o = 0; o < O; o++) sum[o] += V::load(dy + o * w.dy_plane) * pixels;
    }
  }
  for (int o = 0; o < O; o++) V::store(sums + o * w.sums_o, sum[o]);
}

// The three taps left, at and right of a pixel. Their pixels are joined from whole vectors in registers (loads of two
// of them would lie across two cache lines each) and stay there, as each vector of dy does for its three uses. Not
// inlined: within a larger function the sums would not all stay in registers.
template <class A, int O, bool in_place>
[[gnu::noinline]] void correlate_three_taps(const Pair<A>& w, A* sums) {
  using V = Simd<A>;
  typename V::Vector sum[O][3];
  for (int o = 0; o < O; o++)
    for (int t = 0; t < 3; t++) sum[o][t] = V::load(sums + o * w.sums_o + t * V::width);
  for (int64_t r = 0; r < w.rows; r++) {
    const A *x = w.x + r * w.x_row, *dy = w.dy + r * w.dy_row;
    typename V::Vector left = in_place ? typename V::Vector{} : V::load(x - V::width), middle = V::load(x);
    for (int64_t v = 1; v <= w.vectors; v++, dy += V::width) {
      if (w.next.data) __builtin_prefetch(w.next.data + r * w.next.row + (v - 1) * w.next.vector, 0, 2);
      const typename V::Vector right = in_place && v == w.vectors ? typename V::Vector{} : V::load(x + v * V::width);
      typename V::Vector pixels[3] = {V::last_of_first(left, middle), middle, V::first_of_last(middle, right)};
      for (int t = 0; t < 3; t++) keep_in_register(pixels[t]);
      for (int o = 0; o < O; o++) {
        typename V::Vector d = V::load(dy + o * w.dy_plane);
        keep_in_register(d);
        for (int t = 0; t < 3; t++) sum[o][t] += d * pixels[t];
      }
      left = middle, middle = right;
    }
  }
  for (int o = 0; o < O; o++)
    for (int t = 0; t < 3; t++) V::store(sums + o * w.sums_o + t * V::width, sum[o][t]);
}

// The sizes of a correlation, and how it is cut into parts, strips and rows that stay in a cache.
template <class S>
struct Plan {
  using A = Accumulate<S>;
  int64_t channels, height, width, group, size, taps, per_group, pad;
  int64_t groups;                        // of all samples
  int64_t vectors, dy_row, lead, x_row;  // the image in a row of x is aligned, without its halo of lead + pad
  int64_t x_plane, dy_plane;             // in scratch memory
  int64_t rows, inner;                   // of a strip; and of it, before the next pair of channels
  int64_t parts, part_rows;              // Few jobs are cut into parts, so that all threads have work.
  bool reflect;
  bool dy_in_place, x_in_place;  // read where it lies: whole vectors, and of x no border but zeros

  Plan(const Image<S>& x, const Image<S>& dy, int64_t samples, at::IntArrayRef kernel, bool reflect)
      : channels(x.channels), height(x.height), width(x.width), group(kernel[2]), size(kernel[3]), reflect(reflect) {
    constexpr int64_t lanes = Simd<A>::width, value = sizeof(A);
    constexpr bool same_type = std::is_same_v<S, A>;
    groups = samples * channels / group, taps = size * size, per_group = group * group * taps, pad = size / 2;
    vectors = (width + lanes - 1) / lanes, dy_row = vectors * lanes;
    dy_in_place = same_type && dy_row == width && dy.stride_y == width && dy.stride_x == 1;
    x_in_place = same_type && size == 3 && !reflect && dy_row == width && x.stride_x == 1;
    lead = round_up(pad, lanes) - pad;
    x_row = round_up(lead + std::max(dy_row + size - 1, width + 2 * pad), lanes);
    rows = std::clamp<int64_t>(adaconv::kScratchBytes / value / (group * x_row) - 2 * pad, 1, height);
    inner = std::clamp<int64_t>(kInnerBytes / value / (std::min<int64_t>(group, 4) * dy_row), 1, rows);
    // planes a power of two apart would all want the same few lines of the cache
    x_plane = (rows + 2 * pad) * x_row, dy_plane = rows * dy_row + lanes;
    const int64_t wanted = 2 * at::get_num_threads() / std::max<int64_t>(groups, 1);
    parts = std::clamp<int64_t>(wanted, 1, (height + rows - 1) / rows);
    part_rows = (height + parts - 1) / parts;
  }
  int64_t jobs() const { return groups * parts; }
  int64_t grain() const { return 1 + adaconv::kMinimalWork / (per_group * part_rows * width); }
};

// A thread's part of a correlation, with its sums and scratch memory.
template <class S>
class Worker {
 public:
  using A = Accumulate<S>;
  using V = Simd<A>;

  // `sums` [parts, groups, C/G, C/G, k, k] are 0 at first.
  Worker(const Plan<S>& plan, const Image<S>& x, const Image<S>& dy, double* sums)
      : plan_(plan),
        x_(x),
        dy_(dy),
        totals_(sums),
        x_scratch_(plan.x_in_place ? 0 : plan.group * plan.x_plane),
        dy_scratch_(plan.dy_in_place ? 0 : plan.group * plan.dy_plane),
        sums_(plan.per_group * V::width) {
    std::fill_n(sums_.get(), plan.per_group * V::width, A(0));
    if (!plan.x_in_place) std::fill_n(x_scratch_.get(), plan.group * plan.x_plane, A(0));
    if (!plan.dy_in_place) std::fill_n(dy_scratch_.get(), plan.group * plan.dy_plane, A(0));
  }

  // Group `job` of all samples' groups, or beyond these, of their next part.
  void run(int64_t job) {
    const int64_t in_sample = plan_.channels / plan_.group, part = job / plan_.groups, group = job % plan_.groups;
    n_ = group / in_sample, channel_ = group % in_sample * plan_.group;
    double* total = totals_ + job * plan_.per_group;
    const int64_t end = std::min((part + 1) * plan_.part_rows, plan_.height);
    int64_t unflushed = 0;
    for (int64_t first = part * plan_.part_rows; first < end; first += plan_.rows) {
      const int64_t last = std::min(first + plan_.rows, end);
      load_strip(first, last);
      correlate_strip(first, last);
      unflushed += (last - first) * plan_.vectors;
      if (unflushed < kFlush && last < end) continue;
      for (int64_t j = 0; j < plan_.per_group; j++) total[j] += V::sum(V::load(sums_.get() + j * V::width));
      std::fill_n(sums_.get(), plan_.per_group * V::width, A(0));
      unflushed = 0;
    }
  }

 private:
  void load_strip(int64_t first, int64_t last) {
    const int64_t pad = plan_.pad, channels = plan_.group;
    const adaconv::Strip of_x{first - pad, last + pad, pad, plan_.reflect, plan_.x_plane, plan_.x_row};
    const adaconv::Strip of_dy{first, last, 0, false, plan_.dy_plane, plan_.dy_row};
    if (!plan_.x_in_place) copy_strip(x_, n_, channel_, channels, of_x, x_scratch_.get() + plan_.lead);
    if (!plan_.dy_in_place) copy_strip(dy_, n_, channel_, channels, of_dy, dy_scratch_.get());
  }

  // Rows of the strip that begins at `first`. In scratch memory they are below the middle tap of the first pixel.
  Pair<A> rows_of_strip(int64_t first) const {
    const A* x = x_scratch_.get() + plan_.lead + plan_.pad * plan_.x_row + plan_.pad;
    Pair<A> strip{x, dy_scratch_.get(), plan_.x_plane, plan_.x_row, plan_.dy_plane, plan_.dy_row};
    strip.vectors = plan_.vectors, strip.sums_o = plan_.group * plan_.taps * V::width;
    if constexpr (std::is_same_v<S, A>) {
      if (plan_.dy_in_place) {
        strip.dy = dy_.plane(n_, channel_) + first * dy_.stride_y;
        strip.dy_plane = dy_.stride_c;
      }
      if (plan_.x_in_place) {
        strip.x = x_.plane(n_, channel_) + first * x_.stride_y;
        strip.x_plane = x_.stride_c, strip.x_row = x_.stride_y;
      }
    }
    return strip;
  }

  // All pairs of channels: some rows of all pairs before the next ones.
  void correlate_strip(int64_t first, int64_t last) {
    const Pair<A> strip = rows_of_strip(first);
    // what will be wanted next: rows that are read where they lie, or the next strip
    const int64_t ahead = std::is_same_v<S, A> ? first + plan_.inner : last;
    for (int64_t r = 0; r < last - first; r += plan_.inner) {
      const int64_t count = std::min(plan_.inner, last - first - r);
      for_blocks<kOutputs>(plan_.group, [&](int64_t o, auto block) {
        for (int64_t i = 0; i < plan_.group; i++)
          for (int64_t ky = 0; ky < plan_.size; ky++) {
            Pair<A> pair = rows_of_tap(strip, first, r, count, ky);
            pair.x += i * strip.x_plane, pair.dy += o * strip.dy_plane;
            const int64_t channel = channel_ + i;
            if (o == 0 && ky == 0) {
              pair.next = {x_, n_, channel, ahead + r + plan_.pad, V::width};
            } else if (o + block == plan_.group && ky + 1 == plan_.size) {
              pair.next = {dy_, n_, channel, ahead + r, V::width};
            }
            correlate<block>(pair, sums_.get() + ((o * plan_.group + i) * plan_.taps + ky * plan_.size) * V::width);
          }
      });
    }
  }

  // Of `count` rows from r on of a strip that begins at row `first`: those of dy whose tap in row ky of the kernel is
  // within the image. Reflected, it always is.
  Pair<A> rows_of_tap(const Pair<A>& strip, int64_t first, int64_t r, int64_t count, int64_t ky) const {
    const int64_t y = first + r + ky - plan_.pad, skipped = plan_.reflect ? 0 : std::max<int64_t>(-y, 0);
    Pair<A> pair = strip;
    pair.rows = (plan_.reflect ? count : std::min(count, plan_.height - y)) - skipped;
    pair.x += (r + skipped + ky - plan_.pad) * strip.x_row;
    pair.dy += (r + skipped) * strip.dy_row;
    return pair;
  }

  // A row of the kernel's taps.
  template <int O>
  void correlate(const Pair<A>& pair, A* sums) const {
    if (plan_.size != 3) {
      for (int64_t t = 0; t < plan_.size; t++) correlate_tap<A, O>(pair, t - plan_.pad, sums + t * V::width);
    } else if (plan_.x_in_place) {
      correlate_three_taps<A, O, true>(pair, sums);
    } else {
      correlate_three_taps<A, O, false>(pair, sums);
    }
  }

  const Plan<S>& plan_;
  const Image<S>&x_, &dy_;
  double* const totals_;
  Scratch<A> x_scratch_, dy_scratch_, sums_;
  int64_t n_ = 0, channel_ = 0;  // of the block at hand
};

template <class S>
void grad_kernel(const at::Tensor& x_, const at::Tensor& dy_, bool reflect, at::Tensor& dkernel_) {
  const Image<S> x(x_), dy(dy_);
  const Plan<S> plan(x, dy, x_.size(0), dkernel_.sizes(), reflect);
  const int64_t count = plan.groups * plan.per_group;
  at::Tensor sums_ = at::zeros({plan.parts, count}, x_.options().dtype(at::kDouble));
  double* sums = sums_.mutable_data_ptr<double>();
  at::parallel_for(0, plan.jobs(), plan.grain(), [&](int64_t begin, int64_t end) {
    Worker<S> worker(plan, x, dy, sums);
    for (int64_t job = begin; job < end; job++) worker.run(job);
  });
  S* dkernel = dkernel_.mutable_data_ptr<S>();
  for (int64_t j = 0; j < count; j++) {
    double total = 0;
    for (int64_t part = 0; part < plan.parts; part++) total += sums[part * count + j];
    dkernel[j] = static_cast<S>(total);
  }
}

at::Tensor adaconv_grad_kernel_cpu(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef shape, bool reflect) {
  check_adaconv(x, shape, dy, reflect);
  check_like(x, dy, "dy", "x");
  at::Tensor dkernel = empty_output(shape, x.options());
  if (x.numel() == 0) return dkernel.zero_();
  DISPATCH_FLOATING(x.scalar_type(), "adaconv_grad_kernel", [&] {
    if (adaconv::pixels::computable<scalar_t>(x, shape)) {
      adaconv::pixels::correlate<scalar_t>(x, dy.contiguous(order_of(x)), reflect, dkernel);
    } else {
      grad_kernel<scalar_t>(adaconv::in_planes(x), adaconv::in_planes(dy), reflect, dkernel);
    }
  });
  return dkernel;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("adaconv_grad_kernel", &adaconv_grad_kernel_cpu); }
