// What the kernels for both devices share: types, dispatch, and the checks without which they would read beyond their
// tensors. The Python functions check before, with better words.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/macros/Macros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

// float16 and bfloat16 are computed in float32, float64 in itself.
template <class Storage>
using Accumulate = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

#define DISPATCH_FLOATING(TYPE, NAME, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, NAME, __VA_ARGS__)

// Sizes for a message, "[2, 3, 4]". Messages are strings that are put together without streams, and so are given to
// TORCH_CHECK_VALUE as one: where the linker puts a copy of the C++ library into ours, a stream that formats a number
// may take that copy's data for those of PyTorch's, and crash.
inline std::string text(at::IntArrayRef sizes) {
  std::string list = "[";
  for (size_t i = 0; i < sizes.size(); i++) list += (i ? ", " : "") + std::to_string(sizes[i]);
  return list + "]";
}

// Channels-last for what is dense in that order alone; else contiguous.
inline at::MemoryFormat order_of(const at::Tensor& x) {
  const bool last = x.dim() == 4 && !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// As in bias_act.py.
enum Activation : int64_t { kLinear, kRelu, kLrelu, kSigmoid, kTanh };

// x [N, C, H, W] with the shape of its kernels, and another tensor beside it.
inline void check_adaconv(const at::Tensor& x, at::IntArrayRef kernel, const at::Tensor& other, bool reflect) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x: expected [N, C, H, W]");
  TORCH_CHECK_VALUE(kernel.size() == 5 && kernel[0] == x.size(0) && kernel[1] == x.size(1) && kernel[2] > 0 &&
                        kernel[1] % kernel[2] == 0 && kernel[3] == kernel[4] && kernel[3] % 2 == 1,
                    "kernel: expected [N, C, C/G, k, k] with odd k for x " + text(x.sizes()) + ", got " + text(kernel));
  TORCH_CHECK_VALUE(!reflect || std::min(x.size(2), x.size(3)) > kernel[3] / 2, "x: too small to be reflected");
  TORCH_CHECK_VALUE(other.scalar_type() == x.scalar_type() && other.device() == x.device(),
                    "expected one dtype and one device");
}

// AdaConv's bias [N, C] as contiguous values; undefined for none.
inline at::Tensor check_shift(const at::Tensor& x, const std::optional<at::Tensor>& bias) {
  if (!bias) return {};
  TORCH_CHECK_VALUE(bias->dim() == 2 && bias->sizes() == x.sizes().slice(0, 2) &&
                        bias->scalar_type() == x.scalar_type() && bias->device() == x.device(),
                    "bias: expected [N, C] of the dtype and device of x");
  return bias->contiguous();
}

// Both gradients' second argument.
inline void check_like(const at::Tensor& like, const at::Tensor& other, const char* name, const char* of) {
  TORCH_CHECK_VALUE(
      other.sizes() == like.sizes() && other.scalar_type() == like.scalar_type() && other.device() == like.device(),
      std::string(name) + ": expected the shape, dtype and device of " + of);
}

inline void check_bias_act(const at::Tensor& x, int64_t act, double gain) {
  TORCH_CHECK_VALUE(x.dim() >= 2, "x: expected [N, C, ...], got " + text(x.sizes()));
  TORCH_CHECK_VALUE(act >= kLinear && act <= kTanh, "act: expected 0 to 4, got " + std::to_string(act));
  TORCH_CHECK_VALUE(gain != 0, "gain: expected another number than 0");
}

// bias_act's bias [C] as contiguous values; undefined for none.
inline at::Tensor check_bias(const at::Tensor& x, const std::optional<at::Tensor>& bias) {
  if (!bias) return {};
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == x.size(1) && bias->scalar_type() == x.scalar_type() &&
                        bias->device() == x.device(),
                    "bias: expected [" + std::to_string(x.size(1)) + "] of the dtype and device of x");
  return bias->contiguous();
}

// What sums of squares are taken around, of the values of a plane: zero would cost a large mean most digits. The median
// of three is near the mean even where one of them is an outlier.
template <class A>
C10_HOST_DEVICE A median(A a, A b, A c) {
  const A low = a < b ? a : b, high = a < b ? b : a;
  return c < low ? low : c < high ? c : high;
}

template <class S>
C10_HOST_DEVICE Accumulate<S> moments_origin(const S* plane, int64_t count, int64_t stride = 1) {
  using A = Accumulate<S>;
  return median(static_cast<A>(plane[0]), static_cast<A>(plane[count / 2 * stride]),
                static_cast<A>(plane[(count - 1) * stride]));
}

inline void check_moments(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.size(2) * x.size(3) > 0, "x: expected [N, C, H, W], H and W not 0");
}

// Height and width of what upfirdn2d makes of x.
inline std::pair<int64_t, int64_t> check_upfirdn2d(const at::Tensor& x, const at::Tensor& f, int64_t up, int64_t down,
                                                   at::IntArrayRef padding) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x: expected [N, C, H, W]");
  TORCH_CHECK_VALUE(f.dim() == 1 && f.numel() > 0 && f.numel() <= 8192 && f.device() == x.device(),
                    "f: expected [f] beside x, of at most 8192 taps");
  TORCH_CHECK_VALUE(up >= 1 && up <= 4096 && down >= 1 && down <= 4096 && padding.size() == 4,
                    "up, down, padding: out of range");
  constexpr int64_t most = std::numeric_limits<int>::max() / 4;
  bool fits = x.size(2) <= most / up && x.size(3) <= most / up;
  for (int64_t p : padding) fits = fits && p >= -most && p <= most;
  TORCH_CHECK_VALUE(fits, "up, down, padding: out of range for x " + text(x.sizes()));
  const int64_t height = x.size(2) * up + padding[2] + padding[3], width = x.size(3) * up + padding[0] + padding[1];
  TORCH_CHECK_VALUE(height >= f.numel() && width >= f.numel(),
                    "x: smaller than the filter after upsampling and padding");
  return {(height - f.numel()) / down + 1, (width - f.numel()) / down + 1};
}
