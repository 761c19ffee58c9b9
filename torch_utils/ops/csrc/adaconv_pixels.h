// AdaConv's three ops in channels-last memory on the CPU, for 3 × 3 kernels: a vector is of the channels of one pixel.
//
// Output channel c of a group reads all G channels of that group. So each vector of x is turned into G vectors, the
// j-th of which has the j-th channel of each group in all lanes of the group; it is multiplied with a vector of kernel
// values K[tap][j][c].
//
// A job is a vector of channels of one sample, and a strip of rows, which is copied to scratch memory with the border
// around it.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "adaconv.h"
#include "common.h"
#include "memory.h"
#include "simd.h"

namespace adaconv::pixels {

constexpr int64_t kStripBytes = 64 << 10;
constexpr int kColumns = 8;  // of a row, whose sums are in registers together

// Whether these kernels compute AdaConv of x with such kernels.
template <class S>
bool computable(const at::Tensor& x, at::IntArrayRef kernel) {
  const int64_t lanes = Simd<Accumulate<S>>::width, group = kernel[2];
  return order_of(x) == at::MemoryFormat::ChannelsLast && kernel[3] == 3 && x.size(1) % lanes == 0 &&
         lanes % group == 0 && (group & (group - 1)) == 0;
}

// Calls f with the number of channels of a group as a constant.
template <int Most, class F>
void with_group(int64_t group, F f) {
  if constexpr (Most > 1) {
    if (group < Most) return with_group<Most / 2>(group, f);
  }
  f(constant<Most>);
}

// Calls f(j) with the constants 0..count − 1. What f indexes by them are registers, where in an unrolled loop they
// could be memory.
template <class F, int... j>
[[gnu::always_inline]] inline void for_each(const F& f, std::integer_sequence<int, j...>) {
  (f(constant<j>), ...);
}
template <int count, class F>
[[gnu::always_inline]] inline void for_constants(const F& f) {
  for_each(f, std::make_integer_sequence<int, count>());
}

// A dense channels-last tensor.
template <class S>
struct Pixels {
  int64_t samples, channels, height, width;
  explicit Pixels(const at::Tensor& x) : samples(x.size(0)), channels(x.size(1)), height(x.size(2)), width(x.size(3)) {}
  int64_t blocks() const { return channels / Simd<Accumulate<S>>::width; }
  int64_t at(int64_t n, int64_t block, int64_t y) const {
    return (n * height + y) * width * channels + block * Simd<Accumulate<S>>::width;
  }
  // Rows of a strip, whose copy with the border stays in a cache.
  int64_t rows() const {
    const int64_t row = (width + 2) * kVectorBytes;
    return std::clamp<int64_t>(kStripBytes / row - 2, std::min<int64_t>(height, 4), height);
  }
};

// Rows first − 1 .. last of a vector of channels, with a column on both sides, to `out` [rows + 2, width + 2, lanes].
template <class S, class A>
void copy_strip(const Pixels<S>& x, const S* data, int64_t n, int64_t block, int64_t first, int64_t last, bool reflect,
                A* out) {
  using V = Simd<A>;
  for (int64_t y = first - 1; y <= last; y++) {
    A* row = out + (y - first + 1) * (x.width + 2) * V::width;
    if (!reflect && (y < 0 || y >= x.height)) {
      std::fill_n(row, (x.width + 2) * V::width, A(0));
      continue;
    }
    const S* from = data + x.at(n, block, reflected(y, x.height));
    for (int64_t j = 0; j < x.width; j++) V::store(row + (j + 1) * V::width, load_as<A>(from + j * x.channels));
    const typename V::Vector zero = {};
    V::store(row, reflect ? V::load(row + 2 * V::width) : zero);
    V::store(row + (x.width + 1) * V::width, reflect ? V::load(row + (x.width - 1) * V::width) : zero);
  }
}

// The kernels [N, C, G, 3, 3] as [N, C / lanes, j, tap, lanes]; `turned` for the gradient by x: inputs and outputs
// exchanged, taps flipped.
template <int group, class S, class A>
void pack_kernels(const S* kernels, int64_t count, bool turned, A* out) {
  constexpr int64_t lanes = Simd<A>::width, values = group * 9;
  for (int64_t first = 0; first < count; first += lanes, kernels += lanes * values, out += lanes * values)
    if (!turned) {
      transpose<A>(kernels, values, lanes, values, out, lanes);
    } else {
      const S* from = kernels;
      for (int64_t begin = 0; begin < lanes; begin += group)
        for (int64_t j = 0; j < group; j++)
          for (int64_t c = begin; c < begin + group; c++)
            for (int64_t tap = 8; tap >= 0; tap--) out[(j * 9 + tap) * lanes + c] = static_cast<A>(*from++);
    }
}

// `columns` outputs of a row. `in` is the first pixel that the first of them reads, in scratch memory; `kernel` [group,
// tap, lanes].
template <int group, int columns, class S, class A>
inline void compute_columns(const A* in, int64_t in_row, const A* kernel, typename Simd<A>::Vector bias, S* out,
                            int64_t stride) {
  using V = Simd<A>;
  typename V::Vector sum[columns];
  for (int q = 0; q < columns; q++) sum[q] = bias;
  for (int64_t ky = 0; ky < 3; ky++, in += in_row, kernel += 3 * V::width)
    for_constants<group>([&](auto j) __attribute__((always_inline)) {
      const typename V::Vector left = V::load(kernel + j * 9 * V::width);
      const typename V::Vector middle = V::load(kernel + (j * 9 + 1) * V::width);
      const typename V::Vector right = V::load(kernel + (j * 9 + 2) * V::width);
      for_constants<columns + 2>([&](auto q) __attribute__((always_inline)) {
        const typename V::Vector pixel = V::template lane_of_group<group, j>(V::load(in + q * V::width));
        if constexpr (q < columns) sum[q] += left * pixel;
        if constexpr (q >= 1 && q <= columns) sum[q - 1] += middle * pixel;
        if constexpr (q >= 2) sum[q - 2] += right * pixel;
      });
    });
  for (int q = 0; q < columns; q++) store_as<A>(out + q * stride, sum[q]);
}

// y = x ⋆ K + bias, or with `turned` the gradient by x with zeros beyond the border.
template <class S>
void convolve(const at::Tensor& x_, const at::Tensor& kernel, const S* bias, bool reflect, bool turned,
              at::Tensor& y_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const Pixels<S> x(x_);
  const int64_t size = kernel.size(2), taps = 9 * size * V::width, rows = x.rows();
  const int64_t strips = (x.height + rows - 1) / rows, row = (x.width + 2) * V::width;
  Scratch<A> packed(kernel.numel());
  const S* data = x_.const_data_ptr<S>();
  S* out = y_.mutable_data_ptr<S>();
  const int64_t grain = 1 + kMinimalWork / (taps * rows * x.width);
  with_group<V::width>(size, [&](auto group) {
    pack_kernels<group>(kernel.const_data_ptr<S>(), x.samples * x.channels, turned, packed.get());
    // the vectors of a strip's channels follow each other: they share lines of the cache
    at::parallel_for(0, x.samples * strips * x.blocks(), grain, [&](int64_t begin, int64_t end) {
      Scratch<A> strip((rows + 2) * row);
      for (int64_t job = begin; job < end; job++) {
        const int64_t block = job % x.blocks(), n = job / x.blocks() / strips;
        const int64_t first = job / x.blocks() % strips * rows, last = std::min(first + rows, x.height);
        copy_strip(x, data, n, block, first, last, reflect, strip.get());
        const int64_t vector = n * x.blocks() + block;
        const A* with = packed.get() + vector * taps;
        const typename V::Vector shift = bias ? load_as<A>(bias + vector * V::width) : typename V::Vector{};
        for (int64_t r = first; r < last; r++) {
          const A* in = strip.get() + (r - first) * row;
          S* to = out + x.at(n, block, r);
          for_blocks<kColumns>(x.width, [&](int64_t w, auto columns) {
            compute_columns<group, columns>(in + w * V::width, row, with, shift, to + w * x.channels, x.channels);
          });
        }
      }
    });
  });
}

// Adds dy[w] · x[w + kx] of a row, for `Rows` rows of the kernel and channels first..first + some − 1 of each group, to
// sums [group, tap, lanes]. `in` is the row's first pixel with its border, in scratch memory.
template <int group, int Rows, int first, int some, class S, class A>
inline void correlate_row(const A* in, int64_t in_row, const S* dy, int64_t width, int64_t stride, A* sums) {
  using V = Simd<A>;
  typename V::Vector sum[Rows][3][some];
  const auto place = [&](int ky, int kx, int j) { return sums + ((first + j) * 9 + ky * 3 + kx) * V::width; };
  for (int ky = 0; ky < Rows; ky++)
    for (int kx = 0; kx < 3; kx++)
      for (int j = 0; j < some; j++) sum[ky][kx][j] = V::load(place(ky, kx, j));
  typename V::Vector d[3] = {};  // of the pixels that have x in their right, middle and left tap
  for (int64_t q = 0; q < width + 2; q++) {
    d[2] = d[1], d[1] = d[0];
    d[0] = q < width ? load_as<A>(dy + q * stride) : typename V::Vector{};
    for_constants<Rows>([&](auto ky) __attribute__((always_inline)) {
      const typename V::Vector pixels = V::load(in + ky * in_row + q * V::width);
      for_constants<some>([&](auto j) __attribute__((always_inline)) {
        const typename V::Vector pixel = V::template lane_of_group<group, first + j>(pixels);
        for_constants<3>([&](auto kx) __attribute__((always_inline)) { sum[ky][kx][j] += d[kx] * pixel; });
      });
    });
  }
  for (int ky = 0; ky < Rows; ky++)
    for (int kx = 0; kx < 3; kx++)
      for (int j = 0; j < some; j++) V::store(place(ky, kx, j), sum[ky][kx][j]);
}

// dK[n, c, j] = x ⋆ dy, with sums in float64 [N, C / lanes, j, tap, lanes] of so many rows at a time.
template <class S>
void correlate(const at::Tensor& x_, const at::Tensor& dy_, bool reflect, at::Tensor& dkernel_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  constexpr int kMost = kVectorRegisters >= 32 ? 24 : 12;  // sums in registers
  const Pixels<S> x(x_);
  const int64_t size = dkernel_.size(2), taps = 9 * size * V::width, rows = x.rows(), row = (x.width + 2) * V::width;
  const S *data = x_.const_data_ptr<S>(), *dy = dy_.const_data_ptr<S>();
  S* dkernel = dkernel_.mutable_data_ptr<S>();
  with_group<V::width>(size, [&](auto group) {
    constexpr int Rows = 9 * group <= kMost ? 3 : 1, some = std::min<int>(group, kMost / 3);
    at::parallel_for(0, x.samples * x.blocks(), 1, [&](int64_t begin, int64_t end) {
      Scratch<A> strip((rows + 2) * row), sums(taps);
      Scratch<double> totals(taps);
      for (int64_t job = begin; job < end; job++) {
        const int64_t n = job / x.blocks(), block = job % x.blocks();
        std::fill_n(totals.get(), taps, 0.);
        for (int64_t first = 0; first < x.height; first += rows) {
          const int64_t last = std::min(first + rows, x.height);
          copy_strip(x, data, n, block, first, last, reflect, strip.get());
          std::fill_n(sums.get(), taps, A(0));
          for (int64_t ky = 0; ky < 3; ky += Rows)
            for_constants<group / some>([&](auto part) {
              for (int64_t r = first; r < last; r++)
                correlate_row<group, Rows, part * some, some>(strip.get() + (r - first + ky) * row, row,
                                                              dy + x.at(n, block, r), x.width, x.channels,
                                                              sums.get() + ky * 3 * V::width);
            });
          for (int64_t j = 0; j < taps; j++) totals.get()[j] += sums.get()[j];
        }
        S* to = dkernel + job * taps;
        for (int64_t c = 0; c < V::width; c++)
          for (int64_t j = 0; j < 9 * group; j++) *to++ = static_cast<S>(totals.get()[j * V::width + c]);
      }
    });
  });
}

}  // namespace adaconv::pixels
