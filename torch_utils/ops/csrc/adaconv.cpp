// AdaConv on the CPU: every sample convolved with its own grouped kernel, "same" size.
//
//   forward       y[n,o]    = Σ_i x[n,i] ⋆ K[n,o,i] + bias[n,o]
//   grad_x        dx[n,i]   = Σ_o dy[n,o] ⋆ K[n,o,i] turned round, folded back at a reflected border
//   grad_kernel   dK[n,o,i] = x[n,i] ⋆ dy[n,o]
//
// Work is cut into jobs of one group of one sample and a strip of rows. A tile of O output channels by P vectors of
// pixels stays in registers while all inputs and taps are added up. What is not in float32 or float64, has strides or
// other sizes than the tiles take, is copied with the border around it to scratch memory first.

#include "simd.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace {

constexpr int64_t kScratchBytes = 128 << 10;  // a strip of all planes of a group: half a small L2 cache
constexpr int64_t kInnerBytes = 16 << 10;     // rows of four planes of dy: half a small L1 cache
constexpr int kOutputs = kVectorRegisters >= 32 ? 8 : 4;  // of a group, whose sums of three taps fill the registers
constexpr int64_t kFlush = 1024;              // additions to one float32 before it goes into a float64
constexpr int64_t kMinimalWork = 1 << 17;     // multiply-adds that are worth a thread

// Plane (n, c) of a tensor [N, C, H, W] of any strides.
template <class S>
struct Picture {
  const S* data;
  int64_t height, width, stride_n, stride_c, stride_y, stride_x;

  explicit Picture(const at::Tensor& t)
      : data(t.const_data_ptr<S>()), height(t.size(2)), width(t.size(3)), stride_n(t.stride(0)), stride_c(t.stride(1)),
        stride_y(t.stride(2)), stride_x(t.stride(3)) {}
  const S* plane(int64_t n, int64_t c) const { return data + n * stride_n + c * stride_c; }
};

int64_t reflected(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

// Rows first..last of a plane with `halo` columns on both sides, reflected or as they are: the scratch starts as zeros,
// and columns beyond the border stay so.
template <class S, class A>
void fill(const Picture<S>& x, const S* plane, int64_t first, int64_t last, int64_t halo, bool reflect, A* out,
          int64_t row_stride) {
  for (int64_t y = first; y < last; y++, out += row_stride) {
    const bool inside = y >= 0 && y < x.height;
    if (!inside && !reflect) {
      std::fill_n(out + halo, x.width, A(0));
      continue;
    }
    // a strip's halo may reach further than one reflection; such rows are never read
    const int64_t source = inside ? y : std::clamp<int64_t>(reflected(y, x.height), 0, x.height - 1);
    copy_row(plane + source * x.stride_y, x.stride_x, out + halo, x.width);
    for (int64_t j = 1; reflect && j <= halo; j++) {
      out[halo - j] = out[halo + j];
      out[halo + x.width - 1 + j] = out[halo + x.width - 1 - j];
    }
  }
}

// Rows of all outputs of a group. They are computed from scratch memory, or (`bare`, for 3 × 3 kernels and rows of whole
// vectors) from the picture itself, where what lies beyond the border is made up as it is loaded.
template <class A>
struct Rows {
  const A* in;  // input 0; in scratch memory its first tap, in a picture the pixel
  int64_t in_plane, in_row;
  const A* kernel;  // [block of O outputs][inputs][k][k][O]
  int64_t group, size;
  const A* bias;
  A* out;
  int64_t out_plane, out_row;
  int64_t rows, vectors;
  const A* next = nullptr;  // the strip that will be computed next, to be fetched meanwhile
  int64_t next_plane = 0, next_row = 0;
  int64_t first = 0, height = 0;  // bare: of the rows, within the picture
  bool reflect = false;
};

// Where a bare tile finds the rows of its three taps (none: zeros), and whether it lies at a border.
struct Place {
  static constexpr int64_t none = std::numeric_limits<int64_t>::min();
  int64_t rows[3];
  bool left, right;
};

// A tile of O outputs by Q rows by P vectors. K = k, or 0 if that is not known.
template <class A, int O, int Q, int P, int K, bool bare>
void tile(const Rows<A>& w, const A* in, const A* kernel, const A* bias, A* out, const Place& place) {
  using V = Simd<A>;
  const int64_t k = K ? K : w.size;
  typename V::Vector sum[O][Q][P];
  for (int o = 0; o < O; o++)
    for (int q = 0; q < Q; q++)
      for (int p = 0; p < P; p++) sum[o][q][p] = typename V::Vector{} + bias[o];
  for (int64_t i = 0; i < w.group; i++) {
    for (int64_t ky = 0; ky < k; ky++) {
      if (bare && place.rows[ky] == Place::none) {
        kernel += 3 * O;
        continue;
      }
      const A* row = in + i * w.in_plane + (bare ? place.rows[ky] - 1 : ky * w.in_row);
#pragma GCC unroll 5
      for (int64_t kx = 0; kx < k; kx++, kernel += O) {
        for (int q = 0; q < Q; q++) {
          typename V::Vector pixels[P];
          for (int p = 0; p < P; p++) {
            const A* at = row + q * w.in_row + kx + p * V::width;
            if (bare && kx == 0 && p == 0 && place.left) {
              pixels[p] = V::left_of_border(V::load(at + 1), w.reflect);
            } else if (bare && kx == 2 && p == P - 1 && place.right) {
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
  for (int o = 0; o < O; o++)
    for (int q = 0; q < Q; q++)
      for (int p = 0; p < P; p++) V::store(out + o * w.out_plane + q * w.out_row + p * V::width, sum[o][q][p]);
}

// Q rows from r on, of O outputs from o on.
template <class A, int O, int Q, int K, bool bare>
void tiles(const Rows<A>& w, int64_t r, int64_t o) {
  constexpr int64_t width = Simd<A>::width;
  const A *in = w.in + r * w.in_row, *kernel = w.kernel + o * w.group * w.size * w.size;
  A* out = w.out + o * w.out_plane + r * w.out_row;
  Place place{{-w.in_row, 0, w.in_row}, true, false};
  if (bare && w.first + r == 0) place.rows[0] = w.reflect ? w.in_row : Place::none;
  if (bare && w.first + r + Q == w.height) place.rows[2] = w.reflect ? -w.in_row : Place::none;
  int64_t v = 0;
  for (; v + 2 <= w.vectors; v += 2) {
    if (w.next && o == 0)
      for (int64_t i = 0; i < w.group; i++)
        for (int q = 0; q < Q; q++)
          for (int p = 0; p < 2; p++)
            __builtin_prefetch(w.next + i * w.next_plane + (r + q) * w.next_row + (v + p) * width, 0, 2);
    for (int b = 0; b < O; b++)  // the rows that will be written next
      for (int q = 0; q < Q; q++)
        for (int p = 0; p < 2; p++)
          __builtin_prefetch(out + b * w.out_plane + (Q + q) * w.out_row + (v + p) * width, 1, 3);
    place.right = v + 2 == w.vectors;
    tile<A, O, Q, 2, K, bare>(w, in + v * width, kernel, w.bias + o, out + v * width, place);
    place.left = false;
  }
  place.right = true;
  if (v < w.vectors) tile<A, O, Q, 1, K, bare>(w, in + v * width, kernel, w.bias + o, out + v * width, place);
}

template <int N>
constexpr std::integral_constant<int, N> constant{};

// Calls f(first output, O) for blocks of O outputs: `Most` at a time, then halves of that, O known to the compiler.
template <int Most, class F>
void for_blocks(int64_t outputs, F f, int64_t first = 0) {
  for (; outputs - first >= Most; first += Most) f(first, constant<Most>);
  if constexpr (Most > 1) for_blocks<Most / 2>(outputs, f, first);
}

// All rows and outputs, so many rows at a time that 8 to 16 sums are in registers; alone those at a bare border.
template <class A, int K, bool bare = false>
void compute(const Rows<A>& w) {
  for_blocks<8>(w.group, [&](int64_t o, auto block) {
    constexpr int O = block, Q = O >= 4 ? 8 / O : 4;
    int64_t r = 0;
    if (bare && w.first == 0) tiles<A, O, 1, K, bare>(w, r++, o);
    for (; r + Q <= (bare ? std::min(w.rows, w.height - 1 - w.first) : w.rows); r += Q)
      tiles<A, O, Q, K, bare>(w, r, o);
    for (; r < w.rows; r++) tiles<A, O, 1, K, bare>(w, r, o);
  });
}

template <class A>
void compute(const Rows<A>& w) {
  switch (w.size) {
    case 1: return compute<A, 1>(w);
    case 3: return compute<A, 3>(w);
    default: return compute<A, 0>(w);
  }
}

// A group's kernel [o][i][k][k] in the order that tiles read it: [block of o][i][k][k][o in the block]. Turned round,
// it is the kernel of the gradient by x: o and i exchanged, taps flipped.
template <class S, class A>
void pack(const S* kernel, int64_t group, int64_t size, bool turned, A* out) {
  const int64_t taps = size * size;
  for_blocks<8>(group, [&](int64_t o, auto block) {
    for (int64_t i = 0; i < group; i++)
      for (int64_t t = 0; t < taps; t++)
        for (int64_t b = o; b < o + block; b++)
          *out++ = static_cast<A>(turned ? kernel[(i * group + b) * taps + taps - 1 - t]
                                         : kernel[(b * group + i) * taps + t]);
  });
}

// The convolution of x [N, C, H, W] with contiguous kernels, or with these turned round. `fold` adds what falls beyond
// the border to where the border was reflected from: the adjoint of reflecting.
template <class S>
void convolve(const at::Tensor& x_, const at::Tensor& kernel_, const S* bias, bool reflect, bool turned, bool fold,
              at::Tensor& y_) {
  using A = Accumulate<S>;
  const int64_t c = x_.size(1), height = x_.size(2), width = x_.size(3), group = kernel_.size(2),
                size = kernel_.size(3), groups = x_.size(0) * c / group;
  const Picture<S> x(x_);
  const S* kernels = kernel_.const_data_ptr<S>();
  S* y = y_.mutable_data_ptr<S>();

  // What is folded lies pad beyond the picture, and reads pad further; a strip may be that far from its own mirror.
  const int64_t pad = size / 2, halo = fold ? 2 * pad : pad, halo_rows = fold ? 3 * pad : pad;
  const int64_t computed = fold ? width + 2 * pad : width;
  const int64_t vectors = (computed + Simd<A>::width - 1) / Simd<A>::width, padded = vectors * Simd<A>::width;
  // rows begin so that the picture in them is aligned, without its halo
  const int64_t lead = round_up(halo, Simd<A>::width) - halo;
  const int64_t in_row = round_up(lead + std::max(padded + size - 1, width + 2 * halo), Simd<A>::width);
  const bool direct = padded == width && !fold;
  const bool bare = std::is_same_v<S, A> && direct && size == 3 && x.stride_x == 1;

  int64_t rows = kScratchBytes / int64_t(sizeof(A)) / (group * in_row) - 2 * halo_rows;
  rows = std::clamp<int64_t>(rows, std::min<int64_t>(height, 8), height);
  const int64_t strips = (height + rows - 1) / rows;

  const int64_t grain = 1 + kMinimalWork / (group * group * size * size * rows * width);
  at::parallel_for(0, groups * strips, grain, [&](int64_t begin, int64_t end) {
    const int64_t in_plane = (rows + 2 * halo_rows) * in_row;
    Scratch<A> scratch(bare ? 0 : group * in_plane), packed(group * group * size * size), row(group * padded), sums(group * width),
        shift(group);
    if (!bare) std::fill_n(scratch.get(), group * in_plane, A(0));
    A* const in = scratch.get() + lead;
    for (int64_t job = begin; job < end; job++) {
      const int64_t g = job / strips, n = g * group / c, first_channel = g * group % c;
      const int64_t first = job % strips * rows, last = std::min(first + rows, height);
      if (job == begin || job % strips == 0) {
        pack(kernels + g * group * group * size * size, group, size, turned, packed.get());
        for (int64_t o = 0; o < group; o++) shift.get()[o] = bias ? static_cast<A>(bias[g * group + o]) : A(0);
      }
      for (int64_t i = 0; i < group && !bare; i++)
        fill(x, x.plane(n, first_channel + i), first - halo_rows, last + halo_rows, halo, reflect,
             in + i * in_plane, in_row);
      Rows<A> work{in, in_plane, in_row, packed.get(), group, size, shift.get(), row.get(), padded, 0, 1, vectors};
      auto compute_row = [&](int64_t r) {
        work.in = in + (r - pad - first + halo_rows) * in_row;
        compute(work);
      };
      if constexpr (std::is_same_v<S, A>) {
        if (direct) {
          work.out = y + (g * group * height + first) * width;
          work.out_plane = height * width, work.out_row = width, work.rows = last - first;
          if (x.stride_x == 1 && last + rows <= height) {
            work.next = x.plane(n, first_channel) + last * x.stride_y;
          } else if (x.stride_x == 1 && last == height && job + 1 < end) {
            work.next = x.plane((g + 1) * group / c, (g + 1) * group % c);
          }
          work.next_plane = x.stride_c, work.next_row = x.stride_y;
          if (bare) {
            work.in = x.plane(n, first_channel) + first * x.stride_y;
            work.in_plane = x.stride_c, work.in_row = x.stride_y;
            work.first = first, work.height = height, work.reflect = reflect;
            compute<A, 3, true>(work);
          } else {
            compute(work);
          }
          continue;
        }
      }
      for (int64_t r = first; r < last; r++) {
        S* out = y + (g * group * height + r) * width;
        compute_row(r);
        if (!fold) {
          for (int64_t o = 0; o < group; o++) copy_row(row.get() + o * padded, 1, out + o * height * width, width);
          continue;
        }
        std::fill_n(sums.get(), group * width, A(0));
        auto add_folded = [&]() {
          for (int64_t o = 0; o < group; o++) {
            const A* from = row.get() + o * padded + pad;
            A* to = sums.get() + o * width;
            for (int64_t j = 0; j < width; j++) to[j] += from[j];
            for (int64_t j = 1; j <= pad; j++) {
              to[j] += from[-j];
              to[width - 1 - j] += from[width - 1 + j];
            }
          }
        };
        add_folded();
        if (r >= 1 && r <= pad) compute_row(-r), add_folded();
        const int64_t beyond = 2 * (height - 1) - r;
        if (beyond >= height && beyond < height + pad) compute_row(beyond), add_folded();
        for (int64_t o = 0; o < group; o++)
          copy_row(sums.get() + o * width, 1, out + o * height * width, width);
      }
    }
  });
}

// Some rows of x and of O outputs' dy that are to be correlated. `x` is below the middle tap; a row of x is aligned as dy
// is, and what lies left and right of it is its halo, or if it is `bare`, memory of something else that counts as zeros.
template <class A>
struct Pair {
  const A *x, *dy;
  int64_t x_row, dy_plane, dy_row;
  int64_t rows, vectors;
  int64_t sums_o;  // values from one output's sums to the next
  const A* next = nullptr;  // rows that will be wanted soon, to be fetched meanwhile
  int64_t next_row = 0;
};

// One tap: adds dy[o] · x[i], moved by `shift` columns.
template <class A, int O>
void correlate(const Pair<A>& w, int64_t shift, A* sums) {
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

// The three taps left, at and right of a pixel. Their pixels are joined from whole vectors in registers (loads of two of
// them would lie across two cache lines each) and stay there, as each vector of dy does for its three uses.
// Not inlined: within a larger function the sums would not all stay in registers.
template <class A, int O, bool bare>
[[gnu::noinline]] void correlate_three(const Pair<A>& w, A* sums) {
  using V = Simd<A>;
  typename V::Vector sum[O][3];
  for (int o = 0; o < O; o++)
    for (int t = 0; t < 3; t++) sum[o][t] = V::load(sums + o * w.sums_o + t * V::width);
  for (int64_t r = 0; r < w.rows; r++) {
    const A *x = w.x + r * w.x_row, *dy = w.dy + r * w.dy_row;
    typename V::Vector left = bare ? typename V::Vector{} : V::load(x - V::width), middle = V::load(x);
    for (int64_t v = 1; v <= w.vectors; v++, dy += V::width) {
      if (w.next) __builtin_prefetch(w.next + r * w.next_row + (v - 1) * V::width, 0, 2);
      const typename V::Vector right = bare && v == w.vectors ? typename V::Vector{} : V::load(x + v * V::width);
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

template <class S>
void grad_kernel(const at::Tensor& x_, const at::Tensor& dy_, bool reflect, at::Tensor& dkernel_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const int64_t c = x_.size(1), height = x_.size(2), width = x_.size(3), group = dkernel_.size(2),
                size = dkernel_.size(3), groups = x_.size(0) * c / group, taps = size * size,
                per_group = group * group * taps, pad = size / 2;
  const Picture<S> x(x_), dy(dy_);
  const int64_t vectors = (width + Simd<A>::width - 1) / Simd<A>::width, dy_row = vectors * Simd<A>::width;
  // what need not be copied to scratch memory: whole vectors, and of x no border but zeros
  const bool direct = std::is_same_v<S, A> && dy_row == width && dy.stride_y == width && dy.stride_x == 1;
  const bool bare = std::is_same_v<S, A> && size == 3 && !reflect && dy_row == width && x.stride_x == 1;
  const int64_t lead = round_up(pad, V::width) - pad;  // the picture in a row is aligned, without its halo
  const int64_t x_row = round_up(lead + std::max(dy_row + size - 1, width + 2 * pad), V::width);
  const int64_t rows = std::clamp<int64_t>(kScratchBytes / int64_t(sizeof(A)) / (group * x_row) - 2 * pad, 1, height);
  const int64_t inner = std::clamp<int64_t>(kInnerBytes / int64_t(sizeof(A)) / (std::min<int64_t>(group, 4) * dy_row),
                                            1, rows);

  // Few groups are cut into parts of the picture as well, so that all threads have work; their sums are added up.
  const int64_t parts = std::clamp<int64_t>(2 * at::get_num_threads() / std::max<int64_t>(groups, 1), 1,
                                            (height + rows - 1) / rows);
  const int64_t part_rows = (height + parts - 1) / parts;
  at::Tensor parts_ = at::zeros({parts, groups * per_group}, x_.options().dtype(at::kDouble));
  double* all = parts_.mutable_data_ptr<double>();

  const int64_t grain = 1 + kMinimalWork / (per_group * part_rows * width);
  at::parallel_for(0, groups * parts, grain, [&](int64_t begin, int64_t end) {
    // planes a power of two apart would all want the same few lines of the cache
    const int64_t x_plane = (rows + 2 * pad) * x_row, scratch_plane = rows * dy_row + V::width;
    Scratch<A> x_scratch(bare ? 0 : group * x_plane), ds(direct ? 0 : group * scratch_plane), sums(per_group * V::width);
    std::fill_n(sums.get(), per_group * V::width, A(0));
    if (!bare) std::fill_n(x_scratch.get(), group * x_plane, A(0));
    A* const xs = x_scratch.get() + lead;
    if (!direct) std::fill_n(ds.get(), group * scratch_plane, A(0));
    for (int64_t job = begin; job < end; job++) {
      const int64_t g = job % groups, part = job / groups, n = g * group / c, channel = g * group % c;
      double* out = all + part * groups * per_group + g * per_group;
      const int64_t end_row = std::min((part + 1) * part_rows, height);
      int64_t unflushed = 0;
      for (int64_t first = part * part_rows; first < end_row; first += rows) {
        const int64_t last = std::min(first + rows, end_row);
        for (int64_t i = 0; i < group; i++) {
          if (!bare) fill(x, x.plane(n, channel + i), first - pad, last + pad, pad, reflect, xs + i * x_plane, x_row);
          if (!direct) fill(dy, dy.plane(n, channel + i), first, last, 0, false, ds.get() + i * scratch_plane, dy_row);
        }
        Pair<A> work{xs + pad * x_row + pad, ds.get(), x_row, scratch_plane, dy_row, 0, vectors, group * taps * V::width};
        int64_t plane = x_plane;
        if constexpr (std::is_same_v<S, A>) {
          if (direct) work.dy = dy.plane(n, channel) + first * dy_row, work.dy_plane = dy.stride_c;
          if (bare) work.x = x.plane(n, channel) + first * x.stride_y, work.x_row = x.stride_y, plane = x.stride_c;
        }
        for (int64_t r = 0; r < last - first; r += inner) {
          const int64_t count = std::min(inner, last - first - r);
          for_blocks<kOutputs>(group, [&](int64_t o, auto block) {
            for (int64_t i = 0; i < group; i++)
              for (int64_t ky = 0; ky < size; ky++) {
                // the rows of dy whose tap is within the picture; reflected, it always is
                const int64_t y = first + r + ky - pad, skipped = reflect ? 0 : std::max<int64_t>(-y, 0);
                Pair<A> rows_of = work;
                rows_of.rows = (reflect ? count : std::min(count, height - y)) - skipped;
                rows_of.x += i * plane + (r + skipped + ky - pad) * work.x_row;
                rows_of.dy += o * work.dy_plane + (r + skipped) * dy_row;
                if constexpr (std::is_same_v<S, A>) {
                  if (o == 0 && ky == 0) {
                    rows_of.next = x.plane(n, channel + i) + (first + r + inner + pad) * x.stride_y;
                    rows_of.next_row = x.stride_y;
                  } else if (o + block == group && ky + 1 == size) {
                    rows_of.next = dy.plane(n, channel + i) + (first + r + inner) * dy.stride_y;
                    rows_of.next_row = dy.stride_y;
                  }
                }
                A* to = sums.get() + ((o * group + i) * taps + ky * size) * V::width;
                if (size != 3) {
                  for (int64_t t = 0; t < size; t++) correlate<A, block>(rows_of, t - pad, to + t * V::width);
                } else if (bare) {
                  correlate_three<A, block, true>(rows_of, to);
                } else {
                  correlate_three<A, block, false>(rows_of, to);
                }
              }
          });
        }
        unflushed += (last - first) * vectors;
        if (unflushed < kFlush && last < end_row) continue;
        for (int64_t j = 0; j < per_group; j++) out[j] += V::sum(V::load(sums.get() + j * V::width));
        std::fill_n(sums.get(), per_group * V::width, A(0));
        unflushed = 0;
      }
    }
  });

  S* dkernel = dkernel_.mutable_data_ptr<S>();
  for (int64_t j = 0; j < groups * per_group; j++) {
    double total = 0;
    for (int64_t part = 0; part < parts; part++) total += all[part * groups * per_group + j];
    dkernel[j] = static_cast<S>(total);
  }
}

at::Tensor forward_cpu(const at::Tensor& x, const at::Tensor& kernel, const std::optional<at::Tensor>& bias,
                       bool reflect) {
  check_adaconv(x, kernel.sizes(), kernel, reflect);
  const at::Tensor shift = check_shift(x, bias);
  at::Tensor y = empty_output(x.sizes(), x.options());
  if (y.numel() == 0) return y;
  DISPATCH_FLOATING(x.scalar_type(), "adaconv", [&] {
    const scalar_t* bias_data = shift.defined() ? shift.const_data_ptr<scalar_t>() : nullptr;
    convolve<scalar_t>(x, kernel.contiguous(), bias_data, reflect, false, false, y);
  });
  return y;
}

at::Tensor grad_x_cpu(const at::Tensor& dy, const at::Tensor& kernel, bool reflect) {
  check_adaconv(dy, kernel.sizes(), kernel, reflect);
  at::Tensor dx = empty_output(dy.sizes(), dy.options());
  if (dx.numel() == 0) return dx;
  const bool fold = reflect && kernel.size(3) > 1;
  DISPATCH_FLOATING(dy.scalar_type(), "adaconv_grad_x", [&] {
    convolve<scalar_t>(dy, kernel.contiguous(), nullptr, false, true, fold, dx);
  });
  return dx;
}

at::Tensor grad_kernel_cpu(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef shape, bool reflect) {
  check_adaconv(x, shape, dy, reflect);
  check_like(x, dy, "dy", "x");
  at::Tensor dkernel = empty_output(shape, x.options());
  if (x.numel() == 0) return dkernel.zero_();
  DISPATCH_FLOATING(x.scalar_type(), "adaconv_grad_kernel", [&] { grad_kernel<scalar_t>(x, dy, reflect, dkernel); });
  return dkernel;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) {
  m.impl("adaconv", &forward_cpu);
  m.impl("adaconv_grad_x", &grad_x_cpu);
  m.impl("adaconv_grad_kernel", &grad_kernel_cpu);
}
