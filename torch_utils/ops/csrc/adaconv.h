// What AdaConv's CPU kernels share: strips of an image with the border around them, and blocks of outputs.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.h"
#include "memory.h"

namespace adaconv {

constexpr int64_t kScratchBytes = 128 << 10;  // a strip of all planes of a group: half of a small L2 cache
constexpr int64_t kMinimalWork = 1 << 17;     // multiply-adds that are worth a thread

// A tensor [N, C, H, W] with any strides.
template <class S>
struct Image {
  const S* data;
  int64_t channels, height, width, stride_n, stride_c, stride_y, stride_x;

  explicit Image(const at::Tensor& t)
      : data(t.const_data_ptr<S>()),
        channels(t.size(1)),
        height(t.size(2)),
        width(t.size(3)),
        stride_n(t.stride(0)),
        stride_c(t.stride(1)),
        stride_y(t.stride(2)),
        stride_x(t.stride(3)) {}
  const S* plane(int64_t n, int64_t c) const { return data + n * stride_n + c * stride_c; }
};

// Channels-last memory in planes; any other order as it is.
inline at::Tensor in_planes(const at::Tensor& x) {
  return order_of(x) == at::MemoryFormat::ChannelsLast ? x.contiguous() : x;
}

// The index that `i` beyond the border is reflected to.
inline int64_t reflected(int64_t i, int64_t size) {
  if (i < 0) i = -i;
  return i < size ? i : 2 * (size - 1) - i;
}

// Rows [first, last) of an image, which may lie beyond its border, with `halo` columns on both sides.
struct Strip {
  int64_t first, last, halo;
  bool reflect;                      // what is beyond the border is the image reflected; else it is zero
  int64_t plane_stride, row_stride;  // of the copy
};

// Copies a strip of `count` channels of sample n from channel c on to `out`, planes which held zeros at first: columns
// beyond the border are left as they are unless the image is reflected.
template <class S, class A>
void copy_strip(const Image<S>& x, int64_t n, int64_t c, int64_t count, const Strip& strip, A* out) {
  const S* from = x.plane(n, c);
  const int64_t halo = strip.halo;
  for (int64_t i = 0; i < count; i++)
    for (int64_t y = strip.first; y < strip.last; y++) {
      A* row = out + i * strip.plane_stride + (y - strip.first) * strip.row_stride;
      const bool inside = y >= 0 && y < x.height;
      // a strip's halo may reach further than one reflection; such rows are never read
      const int64_t source = inside ? y : std::clamp<int64_t>(reflected(y, x.height), 0, x.height - 1);
      const S* pixels = from + i * x.stride_c + source * x.stride_y;
      if (!inside && !strip.reflect) {
        std::fill_n(row + halo, x.width, A(0));
        continue;
      }
      copy_row(pixels, x.stride_x, row + halo, x.width);
      for (int64_t j = 1; strip.reflect && j <= halo; j++) {
        row[halo - j] = row[halo + j];
        row[halo + x.width - 1 + j] = row[halo + x.width - 1 - j];
      }
    }
}

// Rows of planes that will be wanted soon, to be fetched meanwhile. Distances are in bytes.
struct Next {
  const char* data = nullptr;
  int64_t plane = 0, row = 0, vector = 0;

  Next() = default;
  template <class S>
  Next(const Image<S>& x, int64_t n, int64_t c, int64_t y, int64_t lanes) {
    constexpr int64_t value = sizeof(S);
    if (x.stride_x != 1) return;
    data = reinterpret_cast<const char*>(x.plane(n, c) + y * x.stride_y);
    plane = x.stride_c * value, row = x.stride_y * value, vector = lanes * value;
  }
};

template <int N>
constexpr std::integral_constant<int, N> constant{};

// Calls f(first output, O) for blocks of O outputs: `Most` at a time, then halves of that. The compiler knows O.
template <int Most, class F>
void for_blocks(int64_t outputs, F f, int64_t first = 0) {
  for (; outputs - first >= Most; first += Most) f(first, constant<Most>);
  if constexpr (Most > 1) for_blocks<Most / 2>(outputs, f, first);
}

}  // namespace adaconv
