// Upsample, filter, downsample on the CPU, for separable filters: down the columns first, then along the rows.
//
//   y[oy, ox] = gain · Σ_ty Σ_tx f[ty] · f[tx] · u[oy·down + ty − top, ox·down + tx − left],   u: x with zeros between
//
// Only taps that meet no inserted zero are computed. A job is some channels of a sample and a strip of output rows.
// What is not in planes of the type of the arithmetic is converted on the way: a strip of it, in scratch memory.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"
#include "memory.h"
#include "simd.h"
#include "upfirdn2d.h"

namespace {

using upfirdn2d::Phase;
using upfirdn2d::Plan;
using upfirdn2d::Reads;
using upfirdn2d::RowFilter;
using upfirdn2d::with_taps;

constexpr int64_t kScratchBytes = 256 << 10;  // a strip of x, of all channels of a job

// How a batch is cut into jobs.
template <class S>
struct Jobs {
  using A = Accumulate<S>;
  bool from_pixels, to_pixels;  // x and y are channels-last; else in planes
  bool direct;                  // x is read where it lies
  int64_t samples, channels, at_once, blocks, strip, strips;

  Jobs(const at::Tensor& x, const at::Tensor& y, const Plan<A>& plan) : samples(x.size(0)), channels(x.size(1)) {
    from_pixels = order_of(x) == at::MemoryFormat::ChannelsLast;
    to_pixels = order_of(y) == at::MemoryFormat::ChannelsLast;
    direct = (std::is_same_v<S, A> && !from_pixels) || to_pixels;
    at_once = from_pixels ? std::min<int64_t>(channels, kVectorBytes / sizeof(S)) : 1;
    blocks = (channels + at_once - 1) / at_once;
    // output rows of a strip, so that the rows that they read fill the scratch memory
    const int64_t rows = kScratchBytes / int64_t(sizeof(A)) / (at_once * plan.width);
    strip = (rows - int64_t(plan.f.size()) / plan.up - 1) * plan.up / plan.down;
    if (to_pixels) strip = 16;
    strip =
        direct && !to_pixels ? plan.out_height : std::clamp<int64_t>(strip, 8, std::max<int64_t>(plan.out_height, 8));
    strips = (plan.out_height + strip - 1) / strip;
  }
  int64_t count() const { return samples * blocks * strips; }
};

// Some channels of one sample, and output rows [first, last).
struct Job {
  int64_t n, channel, channels, first, last;
};

template <class S>
Job job_of(const Jobs<S>& jobs, int64_t out_height, int64_t index) {
  const int64_t first = index % jobs.strips * jobs.strip, block = index / jobs.strips;
  const int64_t channel = block % jobs.blocks * jobs.at_once;
  return {block / jobs.blocks, channel, std::min(jobs.at_once, jobs.channels - channel), first,
          std::min(first + jobs.strip, out_height)};
}

// A thread's jobs with results in planes.
template <class S>
class PlaneWorker {
 public:
  using A = Accumulate<S>;

  PlaneWorker(const Plan<A>& plan, const Jobs<S>& jobs, const S* x, S* y)
      : plan_(plan), jobs_(jobs), x_(x), y_(y), filter_(plan) {}

  void run(int64_t index) {
    const Job job = job_of(jobs_, plan_.out_height, index);
    const int64_t plane = job.n * jobs_.channels + job.channel;
    int64_t begin = 0, stride = plan_.height * plan_.width;
    const A* rows = nullptr;
    if constexpr (std::is_same_v<S, A>) rows = x_ + plane * stride;
    if (!jobs_.direct) {
      std::tie(begin, stride) = load(job);
      rows = scratch_.data();
    }
    for (int64_t k = 0; k < job.channels; k++)
      for (int64_t oy = job.first; oy < job.last; oy++)
        filter_.compute(rows + k * stride, begin, oy, y_ + ((plane + k) * plan_.out_height + oy) * plan_.out_width);
  }

 private:
  // Copies the rows that a job reads, as planes, to scratch memory: their first one, and the distance of planes there.
  std::pair<int64_t, int64_t> load(const Job& job) {
    int64_t begin = plan_.height, end = 0;
    for (int64_t oy = job.first; oy < job.last; oy++) {
      const Reads& read = plan_.rows[oy];
      if (read.count == 0) continue;
      begin = std::min(begin, read.first), end = std::max(end, read.first + read.count);
    }
    const int64_t pixels = std::max<int64_t>(end - begin, 0) * plan_.width;
    // planes a power of two apart would all want the same few lines of the cache
    const int64_t stride = round_up(pixels, Simd<A>::width) + Simd<A>::width;
    if (int64_t(scratch_.size()) < job.channels * stride) scratch_.resize(job.channels * stride);
    const int64_t plane = plan_.height * plan_.width, first = begin * plan_.width;
    const S* sample = x_ + job.n * jobs_.channels * plane;
    if (jobs_.from_pixels) {
      transpose<A>(sample + first * jobs_.channels + job.channel, jobs_.channels, pixels, job.channels, scratch_.data(),
                   stride);
    } else {
      for (int64_t k = 0; k < job.channels; k++)
        copy_row(sample + (job.channel + k) * plane + first, 1, scratch_.data() + k * stride, pixels);
    }
    return {begin, stride};
  }

  const Plan<A>& plan_;
  const Jobs<S>& jobs_;
  const S* x_;
  S* y_;
  RowFilter<A> filter_;
  std::vector<A> scratch_;
};

// A thread's jobs with x and results in channels-last memory: vectors are of channels, and pixels need no rearranging.
template <class S>
class PixelWorker {
 public:
  using A = Accumulate<S>;
  using V = Simd<A>;

  PixelWorker(const Plan<A>& plan, const Jobs<S>& jobs, const S* x, S* y)
      : plan_(plan),
        jobs_(jobs),
        x_(x),
        y_(y),
        row_(plan.row * kMost * V::width),
        from_(plan.f.size()),
        weight_(plan.f.size()) {}

  void run(int64_t index) {
    const Job job = job_of(jobs_, plan_.out_height, index);
    if (job.channels == kMost * V::width) return run_vectors<kMost>(job);  // of a whole line of the cache
    Job part = job;
    for (; part.channel < job.channel + job.channels; part.channel += V::width) {
      part.channels = std::min<int64_t>(V::width, job.channel + job.channels - part.channel);
      part.channels == V::width ? run_vectors<1>(part) : run_vectors<1>(part, part.channels);
    }
  }

 private:
  static constexpr int kMost = sizeof(A) / sizeof(S);

  // N vectors of channels of each pixel, or less than one.
  template <int N, class... Count>
  void run_vectors(const Job& job, Count... count) {
    std::fill_n(row_.get(), plan_.row * N * V::width, A(0));  // beside x, which may have been elsewhere in the last job
    for (int64_t oy = job.first; oy < job.last; oy++) {
      filter_columns<N>(job, plan_.rows[oy], count...);
      S* out = y_ + (job.n * plan_.out_height + oy) * plan_.out_width * jobs_.channels + job.channel;
      for (const Phase& phase : plan_.phases) {
        filter_row<N>(phase, out, count...);
        out += jobs_.channels;
      }
    }
  }

  template <int N, class... Count>
  void filter_columns(const Job& job, const Reads& read, Count... count) {
    for (int64_t t = 0; t < read.count; t++) {
      const int64_t row = job.n * plan_.height + read.first + t;
      from_[t] = x_ + row * plan_.width * jobs_.channels + job.channel;
      weight_[t] = plan_.f_gain[read.tap + t * plan_.up];
    }
    with_taps(read.count, [&](auto taps) {
      const int64_t number = taps ? taps : read.count;
      A* out = row_.get() + plan_.margin * N * V::width;
      for (int64_t j = 0; j < plan_.width; j++)
        for (int v = 0; v < N; v++, out += V::width) {
          typename V::Vector total = {};
          for (int64_t t = 0; t < number; t++)
            total += weight_[t] * load_as<A>(from_[t] + j * jobs_.channels + v * V::width, count...);
          V::store(out, total);
        }
    });
  }

  // Every up-th pixel of an output row.
  template <int N, class... Count>
  void filter_row(const Phase& phase, S* out, Count... count) {
    for (int64_t t = 0; t < phase.taps; t++) weight_[t] = plan_.f[phase.tap + t * plan_.up];
    const A* in = row_.get() + (plan_.margin + phase.first) * N * V::width;
    with_taps(phase.taps, [&](auto taps) {
      const int64_t number = taps ? taps : phase.taps;
      for (int64_t m = 0; m < phase.outputs; m++)
        for (int v = 0; v < N; v++) {
          typename V::Vector total = {};
          for (int64_t t = 0; t < number; t++)
            total += weight_[t] * V::load(in + ((m * plan_.down + t) * N + v) * V::width);
          store_as<A>(out + m * plan_.up * jobs_.channels + v * V::width, total, count...);
        }
    });
  }

  const Plan<A>& plan_;
  const Jobs<S>& jobs_;
  const S* x_;
  S* y_;
  Scratch<A> row_;
  std::vector<const S*> from_;
  std::vector<A> weight_;
};

template <class S>
void resample(const at::Tensor& x, const std::vector<double>& filter, int64_t up, int64_t down, at::IntArrayRef padding,
              double gain, at::Tensor& y) {
  const Plan<Accumulate<S>> plan(x, y, filter, up, down, padding, gain);
  const Jobs<S> jobs(x, y, plan);
  const S* from = x.const_data_ptr<S>();
  S* to = y.mutable_data_ptr<S>();
  const int64_t grain = 1 + (1 << 15) / (jobs.at_once * jobs.strip * plan.out_width);
  at::parallel_for(0, jobs.count(), grain, [&](int64_t begin, int64_t end) {
    const auto run = [&](auto worker) {
      for (int64_t job = begin; job < end; job++) worker.run(job);
    };
    jobs.to_pixels ? run(PixelWorker<S>(plan, jobs, from, to)) : run(PlaneWorker<S>(plan, jobs, from, to));
  });
}

at::Tensor upfirdn2d_cpu(const at::Tensor& x_, const at::Tensor& f, int64_t up, int64_t down, at::IntArrayRef padding,
                         double gain) {
  const auto [height, width] = check_upfirdn2d(x_, f, up, down, padding);
  at::Tensor y = empty_output({x_.size(0), x_.size(1), height, width}, x_.options(), order_of(x_));
  if (y.numel() == 0) return y;
  if (x_.numel() == 0) return y.zero_();
  const at::Tensor x = x_.contiguous(order_of(x_)), taps = f.to(at::kDouble).contiguous();
  const std::vector<double> filter(taps.const_data_ptr<double>(), taps.const_data_ptr<double>() + taps.numel());
  DISPATCH_FLOATING(x.scalar_type(), "upfirdn2d", [&] { resample<scalar_t>(x, filter, up, down, padding, gain, y); });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("upfirdn2d", &upfirdn2d_cpu); }
