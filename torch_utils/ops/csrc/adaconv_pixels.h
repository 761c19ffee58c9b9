// AdaConv's three ops in channels-last memory on the CPU, for 3 × 3 kernels, and for 1 × 1 with one channel per group:
// a vector is of the channels of one pixel.
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
  const bool size = kernel[3] == 3 || (kernel[3] == 1 && group == 1);
  return order_of(x) == at::MemoryFormat::ChannelsLast && size && x.size(1) % lanes == 0 && lanes % group == 0;
}

// Calls f with the number of channels of a group and the side of the kernel as constants.
template <int Most, class F>
void with_shape(int64_t group, int64_t size, F f) {
  if constexpr (Most > 1) {
    if (group < Most) return with_shape<Most / 2>(group, size, f);
  } else {
    if (size == 1) return f(constant<1>, constant<1>);
  }
  f(constant<Most>, constant<3>);
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

// Rows [first − halo, last + halo) of a vector of channels, with so many columns on both sides, to `out` [rows,
// columns, lanes]. The halo is 0 or 1.
template <int halo, class S, class A>
void copy_strip(const Pixels<S>& x, const S* data, int64_t n, int64_t block, int64_t first, int64_t last, bool reflect,
                A* out) {
  using V = Simd<A>;
  for (int64_t y = first - halo; y < last + halo; y++) {
    A* row = out + (y - first + halo) * (x.width + 2 * halo) * V::width;
    if (!reflect && (y < 0 || y >= x.height)) {
      std::fill_n(row, (x.width + 2 * halo) * V::width, A(0));
      continue;
    }
    const S* from = data + x.at(n, block, reflected(y, x.height));
    for (int64_t j = 0; j < x.width; j++) V::store(row + (j + halo) * V::width, load_as<A>(from + j * x.channels));
    if (halo == 0) continue;
    const typename V::Vector zero = {};
    V::store(row, reflect ? V::load(row + 2 * V::width) : zero);
    V::store(row + (x.width + 1) * V::width, reflect ? V::load(row + (x.width - 1) * V::width) : zero);
  }
}

// The kernels [N, C, G, k, k] as [N, C / lanes, j, tap, lanes]; `turned` for the gradient by x: inputs and outputs
// exchanged, taps flipped.
template <int group, int size, class S, class A>
void pack_kernels(const S* kernels, int64_t count, bool turned, A* out) {
  constexpr int64_t lanes = Simd<A>::width, taps = size * size, values = group * taps;
  for (int64_t first = 0; first < count; first += lanes, kernels += lanes * values, out += lanes * values)
    if (!turned) {
      transpose<A>(kernels, values, lanes, values, out, lanes);
    } else {
      const S* from = kernels;
      for (int64_t begin = 0; begin < lanes; begin += group)
        for (int64_t j = 0; j < group; j++)
          for (int64_t c = begin; c < begin + group; c++)
            for (int64_t tap = taps - 1; tap >= 0; tap--) out[(j * taps + tap) * lanes + c] = static_cast<A>(*from++);
    }
}

// `columns` outputs of a row. `in` is the first pixel that the first of them reads, in scratch memory; `kernel` [group,
// tap, lanes].
template <int group, int size, int columns, class S, class A>
inline void compute_columns(const A* in, int64_t in_row, const A* kernel, typename Simd<A>::Vector bias, S* out,
                            int64_t stride) {
  using V = Simd<A>;
  typename V::Vector sum[columns];
  for (int q = 0; q < columns; q++) sum[q] = bias;
  for (int64_t ky = 0; ky < size; ky++, in += in_row, kernel += size * V::width)
    for_constants<group>([&](auto j) __attribute__((always_inline)) {
      typename V::Vector with[size];
      for_constants<size>([&](auto kx) __attribute__((always_inline)) {
        with[kx] = V::load(kernel + (j * size * size + kx) * V::width);
      });
      for_constants<columns + size - 1>([&](auto q) __attribute__((always_inline)) {
        const typename V::Vector pixel = V::template lane_of_group<group, j>(V::load(in + q * V::width));
        for_constants<size>([&](auto kx) __attribute__((always_inline)) {
          if constexpr (q >= kx && q - kx < columns) sum[q - kx] += with[kx] * pixel;
        });
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
  const int64_t values = kernel.numel() / (x.samples * x.blocks()), rows = x.rows();  // of a vector's kernels
  const int64_t strips = (x.height + rows - 1) / rows;
  Scratch<A> packed(kernel.numel());
  const S* data = x_.const_data_ptr<S>();
  S* out = y_.mutable_data_ptr<S>();
  const int64_t grain = 1 + kMinimalWork / (values * rows * x.width);
  with_shape<V::width>(kernel.size(2), kernel.size(3), [&](auto group, auto size) {
    constexpr int64_t halo = size / 2;
    const int64_t row = (x.width + 2 * halo) * V::width;
    pack_kernels<group, size>(kernel.const_data_ptr<S>(), x.samples * x.channels, turned, packed.get());
    // the vectors of a strip's channels follow each other: they share lines of the cache
    at::parallel_for(0, x.samples * strips * x.blocks(), grain, [&](int64_t begin, int64_t end) {
      Scratch<A> strip((rows + 2 * halo) * row);
      for (int64_t job = begin; job < end; job++) {
        const int64_t block = job % x.blocks(), n = job / x.blocks() / strips;
        const int64_t first = job / x.blocks() % strips * rows, last = std::min(first + rows, x.height);
        copy_strip<halo>(x, data, n, block, first, last, reflect, strip.get());
        const int64_t vector = n * x.blocks() + block;
        const A* with = packed.get() + vector * values;
        const typename V::Vector shift = bias ? load_as<A>(bias + vector * V::width) : typename V::Vector{};
        for (int64_t r = first; r < last; r++) {
          const A* in = strip.get() + (r - first) * row;
          S* to = out + x.at(n, block, r);
          for_blocks<kColumns>(x.width, [&](int64_t w, auto columns) {
            compute_columns<group, size, columns>(in + w * V::width, row, with, shift, to + w * x.channels, x.channels);
          });
        }
      }
    });
  });
}

// Adds dy[w] · x[w + kx] of a row, for `Rows` rows of the kernel and channels first..first + some − 1 of each group, to
// sums [group, tap, lanes]. `in` is the row's first pixel with its border, in scratch memory.
template <int group, int size, int Rows, int first, int some, class S, class A>
inline void correlate_row(const A* in, int64_t in_row, const S* dy, int64_t width, int64_t stride, A* sums) {
  using V = Simd<A>;
  typename V::Vector sum[Rows][size][some];
  const auto place = [&](int ky, int kx, int j) {
    return sums + ((first + j) * size * size + ky * size + kx) * V::width;
  };
  for (int ky = 0; ky < Rows; ky++)
    for (int kx = 0; kx < size; kx++)
      for (int j = 0; j < some; j++) sum[ky][kx][j] = V::load(place(ky, kx, j));
  typename V::Vector d[size] = {};  // of the pixels that have x in their left tap, and so on to the right one
  for (int64_t q = 0; q < width + size - 1; q++) {
    for (int kx = size - 1; kx > 0; kx--) d[kx] = d[kx - 1];
    d[0] = q < width ? load_as<A>(dy + q * stride) : typename V::Vector{};
    for_constants<Rows>([&](auto ky) __attribute__((always_inline)) {
      const typename V::Vector pixels = V::load(in + ky * in_row + q * V::width);
      for_constants<some>([&](auto j) __attribute__((always_inline)) {
        const typename V::Vector pixel = V::template lane_of_group<group, first + j>(pixels);
        for_constants<size>([&](auto kx) __attribute__((always_inline)) { sum[ky][kx][j] += d[kx] * pixel; });
      });
    });
  }
  for (int ky = 0; ky < Rows; ky++)
    for (int kx = 0; kx < size; kx++)
      for (int j = 0; j < some; j++) V::store(place(ky, kx, j), sum[ky][kx][j]);
}

// dK[n, c, j] = x ⋆ dy, with sums in float64 [N, C / lanes, j, tap, lanes] of so many rows at a time.
template <class S>
void correlate(const at::Tensor& x_, const at::Tensor& dy_, bool reflect, at::Tensor& dkernel_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  constexpr int kMost = kVectorRegisters >= 32 ? 24 : 12;  // sums in registers
  const Pixels<S> x(x_);
  const int64_t values = dkernel_.numel() / (x.samples * x.blocks()), rows = x.rows();  // of a vector's kernels
  const S *data = x_.const_data_ptr<S>(), *dy = dy_.const_data_ptr<S>();
  S* dkernel = dkernel_.mutable_data_ptr<S>();
  with_shape<V::width>(dkernel_.size(2), dkernel_.size(3), [&](auto group, auto size) {
    constexpr int Rows = size * size * group <= kMost ? size : 1, some = std::min<int>(group, kMost / size);
    constexpr int64_t halo = size / 2;
    const int64_t row = (x.width + 2 * halo) * V::width;
    at::parallel_for(0, x.samples * x.blocks(), 1, [&](int64_t begin, int64_t end) {
      Scratch<A> strip((rows + 2 * halo) * row), sums(values);
      Scratch<double> totals(values);
      for (int64_t job = begin; job < end; job++) {
        const int64_t n = job / x.blocks(), block = job % x.blocks();
        std::fill_n(totals.get(), values, 0.);
        for (int64_t first = 0; first < x.height; first += rows) {
          const int64_t last = std::min(first + rows, x.height);
          copy_strip<halo>(x, data, n, block, first, last, reflect, strip.get());
          std::fill_n(sums.get(), values, A(0));
          for (int64_t ky = 0; ky < size; ky += Rows)
            for_constants<group / some>([&](auto part) {
              for (int64_t r = first; r < last; r++)
                correlate_row<group, size, Rows, part * some, some>(strip.get() + (r - first + ky) * row, row,
                                                                    dy + x.at(n, block, r), x.width, x.channels,
                                                                    sums.get() + ky * size * V::width);
            });
          for (int64_t j = 0; j < values; j++) totals.get()[j] += sums.get()[j];
        }
        S* to = dkernel + job * values;
        for (int64_t c = 0; c < V::width; c++)
          for (int64_t j = 0; j < values / V::width; j++) *to++ = static_cast<S>(totals.get()[j * V::width + c]);
      }
    });
  });
}

}  // namespace adaconv::pixels
