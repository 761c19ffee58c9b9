// AdaConv on the CPU: every sample convolved with its own grouped kernel, "same" size.
//
//   forward       y[n,o]    = Σ_i x[n,i] ⋆ K[n,o,i] + bias[n,o]
//   grad_x        dx[n,i]   = Σ_o dy[n,o] ⋆ K[n,o,i] turned round, folded back at a reflected border
//   grad_kernel   dK[n,o,i] = x[n,i] ⋆ dy[n,o]                      (adaconv_grad_kernel.cpp)
//
// Channels-last memory is computed by adaconv_pixels.h where the kernels are 3 × 3 (or 1 × 1 with one channel per
// group), the channels are whole vectors, and a vector is whole groups. All else is computed in planes, as is the
// gradient by x with reflection.
//
// A job is one group of one sample, and a strip of rows. A tile of O output channels by Q rows by P vectors of pixels
// stays in registers while all inputs and taps are added up. The input of a strip is copied to scratch memory with the
// border around it, converted to the type of the arithmetic; where there is nothing to convert and rows are whole
// vectors, 3 × 3 kernels are computed in place, and what lies beyond the border is made up as it is loaded.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>

#include "adaconv.h"
#include "adaconv_pixels.h"
#include "common.h"
#include "simd.h"

namespace {

using adaconv::for_blocks;
using adaconv::Image;

// Which of the two convolutions: the forward one, or the gradient by x.
struct Convolution {
  bool reflect = false;  // beyond the border of the input is its reflection; else there are zeros
  bool turned = false;   // kernels turned round: inputs and outputs exchanged, taps flipped
  bool fold = false;     // outputs beyond the border are added to where they were reflected from: adjoint of `reflect`
};

// Some rows of all outputs of a group, computed in A and written as `Out`.
template <class A, class Out = A>
struct Rows {
  const A* in;  // of input 0: in scratch memory at the first tap, in place at the pixel
  int64_t in_plane, in_row;
  const A* kernel;  // [block of O outputs][inputs][k][k][O]
  int64_t group, size;
  const A* bias;
  Out* out;
  int64_t out_plane, out_row;
  int64_t rows, vectors, width;
  adaconv::Next next;  // the strip that will be computed after this one
  // in place alone:
  int64_t first = 0, height = 0;  // the number of the first row, and how many the image has
  bool reflect = false;
};

// Where a tile that is computed in place finds the rows of its three taps (none: zeros), and whether it is at a border.
struct Place {
  static constexpr int64_t none = std::numeric_limits<int64_t>::min();
  int64_t rows[3];
  bool left, right;
};

// A tile of O outputs by Q rows by P vectors. K = k, or 0 if the compiler does not know it.
template <int O, int Q, int P, int K, bool in_place, class A, class Out>
void compute_tile(const Rows<A, Out>& w, const A* in, const A* kernel, const A* bias, Out* out, const Place& place) {
  using V = Simd<A>;
  const int64_t k = K ? K : w.size;
  typename V::Vector sum[O][Q][P];
  for (int o = 0; o < O; o++)
    for (int q = 0; q < Q; q++)
      for (int p = 0; p < P; p++) sum[o][q][p] = typename V::Vector{} + bias[o];
  for (int64_t i = 0; i < w.group; i++) {
    for (int64_t ky = 0; ky < k; ky++) {
      if (in_place && place.rows[ky] == Place::none) {
        kernel += 3 * O;
        continue;
      }
      const A* row = in + i * w.in_plane + (in_place ? place.rows[ky] - 1 : ky * w.in_row);
#pragma GCC unroll 5
      for (int64_t kx = 0; kx < k; kx++, kernel += O) {
        for (int q = 0; q < Q; q++) {
          typename V::Vector pixels[P];
          for (int p = 0; p < P; p++) {
            const A* at = row + q * w.in_row + kx + p * V::width;
            if (in_place && kx == 0 && p == 0 && place.left) {
              pixels[p] = V::left_of_border(V::load(at + 1), w.reflect);
            } else if (in_place && kx == 2 && p == P - 1 && place.right) {
              pixels[p] = V::right_of_border(V::load(at - 1), w.reflect);
            } else {
              pixels[p] = V::load(at);
            }
          }
          for (int o = 0; o < O; o++)
            for (int p = 0; p < P; p++) sum[o][q][p] += kernel[o] * pixels[p];
        }
      }
    }
  }
  const int64_t last = place.right ? w.width - (w.vectors - 1) * V::width : V::width;  // values of the last vector
  if (in_place || last == V::width) {
    for (int o = 0; o < O; o++)
      for (int q = 0; q < Q; q++)
        for (int p = 0; p < P; p++) store_as<A>(out + o * w.out_plane + q * w.out_row + p * V::width, sum[o][q][p]);
    return;
  }
  for (int o = 0; o < O; o++)
    for (int q = 0; q < Q; q++) {
      Out* row = out + o * w.out_plane + q * w.out_row;
      for (int p = 0; p + 1 < P; p++) store_as<A>(row + p * V::width, sum[o][q][p]);
      store_as<A>(row + (P - 1) * V::width, sum[o][q][P - 1], last);
    }
}

// Fetches what will be read and written soon: of the next strip's inputs, and of the outputs of the next Q rows.
template <int O, int Q, class A, class Out>
void prefetch(const Rows<A, Out>& w, int64_t r, int64_t o, int64_t v, const Out* out) {
  constexpr int64_t width = Simd<A>::width;
  if (w.next.data && o == 0)
    for (int64_t i = 0; i < w.group; i++)
      for (int q = 0; q < Q; q++)
        for (int p = 0; p < 2; p++)
          __builtin_prefetch(w.next.data + i * w.next.plane + (r + q) * w.next.row + (v + p) * w.next.vector, 0, 2);
  for (int b = 0; b < O; b++)
    for (int q = 0; q < Q; q++)
      for (int p = 0; p < 2; p++)
        __builtin_prefetch(out + b * w.out_plane + (Q + q) * w.out_row + (v + p) * width, 1, 3);
}

// Q rows from r on, of O outputs from o on.
template <int O, int Q, int K, bool in_place, class A, class Out>
void compute_tiles(const Rows<A, Out>& w, int64_t r, int64_t o) {
  constexpr int64_t width = Simd<A>::width;
  const A *in = w.in + r * w.in_row, *kernel = w.kernel + o * w.group * w.size * w.size;
  Out* out = w.out + o * w.out_plane + r * w.out_row;
  Place place{{-w.in_row, 0, w.in_row}, true, false};
  if (in_place && w.first + r == 0) place.rows[0] = w.reflect ? w.in_row : Place::none;
  if (in_place && w.first + r + Q == w.height) place.rows[2] = w.reflect ? -w.in_row : Place::none;
  int64_t v = 0;
  for (; v + 2 <= w.vectors; v += 2) {
    prefetch<O, Q>(w, r, o, v, out);
    place.right = v + 2 == w.vectors;
    compute_tile<O, Q, 2, K, in_place>(w, in + v * width, kernel, w.bias + o, out + v * width, place);
    place.left = false;
  }
  place.right = true;
  if (v < w.vectors) compute_tile<O, Q, 1, K, in_place>(w, in + v * width, kernel, w.bias + o, out + v * width, place);
}

// All rows and outputs, so many rows at a time that 8 to 16 sums are in registers; one alone at a border in place.
template <int K, bool in_place = false, class A, class Out>
void compute_rows(const Rows<A, Out>& w) {
  for_blocks<8>(w.group, [&](int64_t o, auto block) {
    constexpr int O = block, Q = O >= 4 ? 8 / O : 4;
    int64_t r = 0;
    if (in_place && w.first == 0) compute_tiles<O, 1, K, in_place>(w, r++, o);
    for (; r + Q <= (in_place ? std::min(w.rows, w.height - 1 - w.first) : w.rows); r += Q)
      compute_tiles<O, Q, K, in_place>(w, r, o);
    for (; r < w.rows; r++) compute_tiles<O, 1, K, in_place>(w, r, o);
  });
}

template <class A, class Out>
void compute_any(const Rows<A, Out>& w) {
  switch (w.size) {
    case 1: return compute_rows<1>(w);
    case 3: return compute_rows<3>(w);
    default: return compute_rows<0>(w);
  }
}

// A group's kernel [o][i][k][k] in the order that tiles read it: [block of o][i][k][k][o in the block]. Turned round,
// it is the kernel of the gradient by x: o and i exchanged, taps flipped.
template <class S, class A>
void pack_kernel(const S* kernel, int64_t group, int64_t size, bool turned, A* out) {
  const int64_t taps = size * size;
  for_blocks<8>(group, [&](int64_t o, auto block) {
    for (int64_t i = 0; i < group; i++)
      for (int64_t t = 0; t < taps; t++)
        for (int64_t b = o; b < o + block; b++)
          *out++ = static_cast<A>(turned ? kernel[(i * group + b) * taps + taps - 1 - t]
                                         : kernel[(b * group + i) * taps + t]);
  });
}

// The sizes of a convolution, and the strips of rows that it is cut into.
template <class S>
struct Plan {
  using A = Accumulate<S>;
  int64_t channels, height, width, group, size;
  int64_t pad, halo, halo_rows;  // What is folded lies pad beyond the image, and reads pad further; a strip may be that
                                 // far from its own mirror.
  int64_t computed, vectors;     // columns of a row, and the vectors that they take
  int64_t lead, in_row;          // rows in scratch memory begin so that the image in them is aligned, without its halo
  int64_t in_plane, rows, strips;
  int64_t out_row, folded_plane;  // of results in scratch memory, before folding
  int64_t groups, jobs;           // groups of a sample, and jobs of all samples
  bool in_place;                  // the input is read where it lies

  Plan(const at::Tensor& x, const at::Tensor& kernel, bool fold)
      : channels(x.size(1)), height(x.size(2)), width(x.size(3)), group(kernel.size(2)), size(kernel.size(3)) {
    constexpr int64_t lanes = Simd<A>::width;
    pad = size / 2, halo = fold ? 2 * pad : pad, halo_rows = fold ? 3 * pad : pad;
    computed = fold ? width + 2 * pad : width, vectors = (computed + lanes - 1) / lanes;
    lead = round_up(halo, lanes) - halo;
    in_row = round_up(lead + std::max(vectors * lanes + size - 1, width + 2 * halo), lanes);
    rows = adaconv::kScratchBytes / int64_t(sizeof(A)) / (group * in_row) - 2 * halo_rows;
    rows = std::clamp<int64_t>(rows, std::min<int64_t>(height, 8), height);
    groups = channels / group, strips = (height + rows - 1) / rows, jobs = x.size(0) * groups * strips;
    in_plane = (rows + 2 * halo_rows) * in_row;
    out_row = vectors * lanes, folded_plane = (rows + 4 * pad) * out_row;
    in_place = std::is_same_v<S, A> && vectors * lanes == width && size == 3 && x.stride(3) == 1 && !fold;
  }
  int64_t grain() const { return 1 + adaconv::kMinimalWork / (group * group * size * size * rows * width); }
};

// A group of one sample from a channel on, and rows [first, last) of it.
struct Job {
  int64_t n, channel, first, last;
};

// A thread's part of a convolution, with its scratch memory.
template <class S>
class Worker {
 public:
  using A = Accumulate<S>;

  Worker(const Plan<S>& plan, const Convolution& how, const Image<S>& x, const S* kernels, const S* bias, S* y)
      : plan_(plan),
        how_(how),
        x_(x),
        kernels_(kernels),
        bias_(bias),
        y_(y),
        scratch_(plan.in_place ? 0 : plan.group * plan.in_plane),
        packed_(plan.group * plan.group * plan.size * plan.size),
        shift_(plan.group),
        folded_(how.fold ? plan.group * plan.folded_plane : 0),
        sums_(plan.width),
        in_(scratch_.get() + plan.lead) {
    if (!plan.in_place) std::fill_n(scratch_.get(), plan.group * plan.in_plane, A(0));
  }

  // Jobs [begin, end), strip by strip of one group after another.
  void run(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; index++) {
      const Job job = this->job(index);
      if (!plan_.in_place) load_strip(job);
      if (index == begin || job.first == 0) load_kernel(job);
      how_.fold ? compute_folded(job) : compute(job, index + 1 < end);
    }
  }

 private:
  Job job(int64_t index) const {
    const int64_t group = index / plan_.strips, first = index % plan_.strips * plan_.rows;
    return {group / plan_.groups, group % plan_.groups * plan_.group, first,
            std::min(first + plan_.rows, plan_.height)};
  }

  void load_kernel(const Job& job) {
    const int64_t group = plan_.group, output = job.n * plan_.channels + job.channel;
    pack_kernel(kernels_ + output * group * plan_.size * plan_.size, group, plan_.size, how_.turned, packed_.get());
    for (int64_t o = 0; o < group; o++) shift_.get()[o] = bias_ ? static_cast<A>(bias_[output + o]) : A(0);
  }

  void load_strip(const Job& job) {
    const adaconv::Strip strip{job.first - plan_.halo_rows,
                               job.last + plan_.halo_rows,
                               plan_.halo,
                               how_.reflect,
                               plan_.in_plane,
                               plan_.in_row};
    copy_strip(x_, job.n, job.channel, plan_.group, strip, in_);
  }

  // Rows [first, last), which may lie beyond the border.
  template <class Out>
  Rows<A, Out> rows(const Job& job, int64_t first, int64_t last, Out* out, int64_t plane, int64_t row) const {
    const A* in = in_ + (first - job.first + plan_.halo_rows - plan_.pad) * plan_.in_row;
    return {in,  plan_.in_plane, plan_.in_row, packed_.get(), plan_.group,   plan_.size,    shift_.get(),
            out, plane,          row,          last - first,  plan_.vectors, plan_.computed};
  }

  // All rows of a strip.
  void compute(const Job& job, bool another_follows) {
    S* out = y_ + ((job.n * plan_.channels + job.channel) * plan_.height + job.first) * plan_.width;
    Rows<A, S> work = rows(job, job.first, job.last, out, plan_.height * plan_.width, plan_.width);
    work.next = next(job, another_follows);
    if constexpr (std::is_same_v<S, A>) {
      if (plan_.in_place) {
        work.in = x_.plane(job.n, job.channel) + job.first * x_.stride_y;
        work.in_plane = x_.stride_c, work.in_row = x_.stride_y;
        work.first = job.first, work.height = plan_.height, work.reflect = how_.reflect;
        return compute_rows<3, true>(work);
      }
    }
    compute_any(work);
  }

  // The strip that is computed after this one.
  adaconv::Next next(const Job& job, bool another_follows) const {
    constexpr int64_t lanes = Simd<A>::width;
    const int64_t channel = job.channel + plan_.group;
    if (job.last + plan_.rows <= plan_.height) return {x_, job.n, job.channel, job.last, lanes};
    if (job.last < plan_.height || !another_follows) return {};
    if (channel < plan_.channels) return {x_, job.n, channel, 0, lanes};
    return {x_, job.n + 1, 0, 0, lanes};
  }

  // All rows of a strip, with the rows and columns beyond the border that are reflections of theirs added.
  void compute_folded(const Job& job) {
    const int64_t pad = plan_.pad, bottom = plan_.height - 1;
    int64_t begin = job.first, end = job.last;
    if (begin <= pad) begin = -std::min(end - 1, pad);
    if (end > bottom - pad) end = 2 * bottom - std::max(job.first, bottom - pad) + 1;
    begin = std::min(begin, job.first), end = std::max(end, job.last);
    compute_any(rows(job, begin, end, folded_.get(), plan_.folded_plane, plan_.out_row));
    for (int64_t o = 0; o < plan_.group; o++) {
      const A* plane = folded_.get() + o * plan_.folded_plane - begin * plan_.out_row;
      S* y = y_ + ((job.n * plan_.channels + job.channel + o) * plan_.height + job.first) * plan_.width;
      for (int64_t r = job.first; r < job.last; r++, y += plan_.width) {
        std::fill_n(sums_.get(), plan_.width, A(0));
        add_folded_row(plane + r * plan_.out_row);
        if (r >= 1 && r <= pad) add_folded_row(plane - r * plan_.out_row);
        if (r >= bottom - pad && r < bottom) add_folded_row(plane + (2 * bottom - r) * plan_.out_row);
        copy_row(sums_.get(), 1, y, plan_.width);
      }
    }
  }

  void add_folded_row(const A* row) {
    const int64_t pad = plan_.pad, width = plan_.width;
    const A* from = row + pad;
    A* to = sums_.get();
    for (int64_t j = 0; j < width; j++) to[j] += from[j];
    for (int64_t j = 1; j <= pad; j++) {
      to[j] += from[-j];
      to[width - 1 - j] += from[width - 1 + j];
    }
  }

  const Plan<S>& plan_;
  const Convolution how_;
  const Image<S>& x_;
  const S *kernels_, *bias_;
  S* y_;
  Scratch<A> scratch_, packed_, shift_, folded_, sums_;
  A* const in_;
};

// The convolution of x [N, C, H, W] with contiguous kernels [N, C, C/G, k, k], in the memory order of x.
template <class S>
at::Tensor convolve(const at::Tensor& x_, const at::Tensor& kernel, const S* bias, const Convolution& how) {
  const bool pixels = adaconv::pixels::computable<S>(x_, kernel.sizes()) && !how.fold;
  const at::Tensor x = pixels ? x_ : adaconv::in_planes(x_);
  at::Tensor y = empty_output(x.sizes(), x.options(), order_of(x));
  if (pixels) {
    adaconv::pixels::convolve<S>(x, kernel, bias, how.reflect, how.turned, y);
    return y;
  }
  const Plan<S> plan(x, kernel, how.fold);
  const Image<S> image(x);
  const S* kernels = kernel.const_data_ptr<S>();
  S* out = y.mutable_data_ptr<S>();
  at::parallel_for(0, plan.jobs, plan.grain(), [&](int64_t begin, int64_t end) {
    Worker<S>(plan, how, image, kernels, bias, out).run(begin, end);
  });
  return y.contiguous(order_of(x_));
}

at::Tensor adaconv_cpu(const at::Tensor& x, const at::Tensor& kernel, const std::optional<at::Tensor>& bias,
                       bool reflect) {
  check_adaconv(x, kernel.sizes(), kernel, reflect);
  const at::Tensor shift = check_shift(x, bias);
  if (x.numel() == 0) return empty_output(x.sizes(), x.options(), order_of(x));
  at::Tensor y;
  DISPATCH_FLOATING(x.scalar_type(), "adaconv", [&] {
    const scalar_t* bias_data = shift.defined() ? shift.const_data_ptr<scalar_t>() : nullptr;
    y = convolve<scalar_t>(x, kernel.contiguous(), bias_data, {.reflect = reflect});
  });
  return y;
}

at::Tensor adaconv_grad_x_cpu(const at::Tensor& dy, const at::Tensor& kernel, bool reflect) {
  check_adaconv(dy, kernel.sizes(), kernel, reflect);
  if (dy.numel() == 0) return empty_output(dy.sizes(), dy.options(), order_of(dy));
  const Convolution how{.turned = true, .fold = reflect && kernel.size(3) > 1};
  at::Tensor dx;
  DISPATCH_FLOATING(dy.scalar_type(), "adaconv_grad_x",
                    [&] { dx = convolve<scalar_t>(dy, kernel.contiguous(), nullptr, how); });
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) {
  m.impl("adaconv", &adaconv_cpu);
  m.impl("adaconv_grad_x", &adaconv_grad_x_cpu);
}
