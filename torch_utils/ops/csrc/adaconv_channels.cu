// AdaConv on tensor cores: half precision in channels-last memory, 3x3 and 1x1, C/G a divisor of 16. See adaconv.cpp
// for the formulas, and cuda.cuh for the instruction, which multiplies 16 × 16 by 16 × 8 values and adds up in float32.
//
// Forward and gradient by x: 16 pixels of a row × 16 channels of the input, times 16 channels × 8 of the output, for
// each tap. The matrix of a tap has zeros between channels of different groups; that more products are computed than
// needed costs less than computing the needed ones on the ordinary cores. A warp goes down a strip of 16 columns: a row
// of the input is loaded once, and added to the three rows of the output that it is a part of, all in registers.
//
// Gradient by the kernel: 16 channels of dy × 16 pixels, times 16 pixels × 8 channels of x, for each tap, of which the
// sums stay in registers as well. A warp goes down several strips; what the warps have summed up is joined afterwards.

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "adaconv.cuh"
#include "common.h"
#include "cuda.cuh"

namespace adaconv {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kSide = 16;          // pixels and channels that a warp takes at once
constexpr int64_t kEnough = 2048;  // warps, which fill the largest GPU

// Two values, as an instruction takes them.
template <class S>
__device__ __forceinline__ uint32_t pack(S low, S high) {
  return uint32_t(low.x) | uint32_t(high.x) << 16;
}
__device__ __forceinline__ uint32_t lows(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }
__device__ __forceinline__ uint32_t highs(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000); }

// Four channels of a pixel.
struct alignas(8) Four {
  uint32_t low, high;
};

// Where a column of a row is, or kNowhere for zeros.
constexpr int kNowhere = -1;

template <Border border>
__device__ __forceinline__ int place(int column, const Convolution& shape) {
  if (border == kReflected) column = reflected(column, shape.width);
  return unsigned(column) < unsigned(shape.width) ? column * shape.channels : kNowhere;
}

// The row of a tensor that row m of a convolution's input is; null for zeros.
template <Border border, class S>
__device__ __forceinline__ const S* row_of(const S* image, int m, const Convolution& shape) {
  if (border == kReflected) m = reflected(m, shape.height);
  return unsigned(m) < unsigned(shape.height) ? image + m * (shape.width * shape.channels) : nullptr;
}

template <class T, class S>
__device__ __forceinline__ T load(const S* row, int place) {
  return row && place != kNowhere ? *reinterpret_cast<const T*>(row + place) : T{};
}

// The weights of 16 channels to 16 channels, as the instruction takes them: of a tap, place q, r of a lane has those of
// output 4 · (lane / 8) + 2 · q + lane / 4 % 2 and inputs 4 · (lane % 4) + 2 · r and the next. C/G is a power of two.
template <class S, int taps, bool turned>
__device__ __forceinline__ void load_weights(const S* kernel, int group, uint32_t (&weight)[taps][2][2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const int out = 4 * (lane / 8) + 2 * (j / 2) + lane / 4 % 2, in = 4 * (lane % 4) + 2 * (j % 2), last = group - 1;
    const S* first = kernel + (turned ? in * group + (out & last) : out * group + (in & last)) * taps;
    const S* second = first + (turned ? group * taps : group > 1 ? taps : 0);
    const bool has_first = (out ^ in) < group, has_second = (out ^ (in + 1)) < group;  // one group
#pragma unroll
    for (int t = 0; t < taps; t++) {
      const int tap = turned ? taps - 1 - t : t;
      weight[t][j / 2][j % 2] = pack(has_first ? first[tap] : S(0.0f), has_second ? second[tap] : S(0.0f));
    }
  }
}

// The pixels of a row, 16 of them for each tap of a row, as the instruction takes them: register r of a lane has those
// of pixel lane / 4 + 8 · (r % 2), channels 4 · (lane % 4) + 2 · (r / 2) and the next.
template <int K, class S>
__device__ __forceinline__ void load_pixels(const S* row, const int (&places)[K][2], uint32_t (&pixels)[K][4]) {
#pragma unroll
  for (int kx = 0; kx < K; kx++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Four four = load<Four>(row, places[kx][half]);
      pixels[kx][half] = four.low, pixels[kx][2 + half] = four.high;
    }
}

// A strip of `rows` rows for each warp. Sum q, r of a lane is that of pixel lane / 4 + 8 · (r / 2), channel
// 4 · (lane % 4) + 2 · q + r % 2.
template <class S, int K, Border border>
__global__ void __launch_bounds__(kThreads, border == kFolded ? 3 : 4)
    adaconv_channels(const S* x, const S* kernel, const S* bias, S* y, Convolution shape, int rows, int64_t tasks) {
  constexpr int pad = K / 2, taps = K * K;
  const int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (task >= tasks) return;
  const int lane = threadIdx.x % 32, eighth = lane / 4, quarter = lane % 4;
  const int blocks = shape.channels / kSide, across = (shape.width + kSide - 1) / kSide;
  const int down = (shape.height + rows - 1) / rows, channel = task % blocks * kSide;
  const int left = task / blocks % across * kSide, top = task / blocks / across % down * rows;
  const int bottom = min(top + rows, shape.height);
  const int64_t sample = task / blocks / across / down, image = sample * shape.height * shape.width * shape.channels;
  const S* input = x + image + channel + 4 * quarter;
  S* output = y + image + channel + 4 * quarter;

  uint32_t weight[taps][2][2];
  const S* kernels = kernel + (sample * shape.channels + channel) * shape.group * taps;
  shape.turned ? load_weights<S, taps, true>(kernels, shape.group, weight)
               : load_weights<S, taps, false>(kernels, shape.group, weight);
  float shift[2][4];
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int64_t at = sample * shape.channels + channel + 4 * quarter + 2 * (j / 4) + j % 2;
    shift[j / 4][j % 4] = bias ? static_cast<float>(bias[at]) : 0.0f;
  }
  int places[K][2], folded[K][2];  // `folded`: of pixels whose reflection is a part of them as well
#pragma unroll
  for (int j = 0; j < 2 * K; j++) {
    const int kx = j / 2, column = left + eighth + 8 * (j % 2);
    places[kx][j % 2] = place<border>(column + kx - pad, shape);
    const bool first = kx == 2 && column == 1, last = kx == 0 && column == shape.width - 2;
    folded[kx][j % 2] = first ? 0 : last ? (shape.width - 1) * shape.channels : kNowhere;
  }
  const bool folds = border == kFolded && (left == 0 || shape.width - 2 - left < kSide);

  float sum[K][2][4];  // of row m + pad − s in place s
#pragma unroll
  for (int j = 0; j < 8 * K; j++) sum[j / 8][j / 4 % 2][j % 4] = shift[j / 4 % 2][j % 4];
  uint32_t pixels[K][4], beyond[K][4], next[K][4];
  load_pixels<K>(row_of<border>(input, top - pad, shape), places, pixels);
#pragma unroll 1
  for (int m = top - pad; m < bottom + pad; m++) {
    load_pixels<K>(row_of<border>(input, m + 1, shape), places, next);
    if (folds) load_pixels<K>(row_of<border>(input, m, shape), folded, beyond);
    const auto add = [&](float (&to)[2][4], int ky) {
#pragma unroll
      for (int j = 0; j < 2 * K; j++) {
        multiply_add<S>(to[j % 2], pixels[j / 2], weight[ky * K + j / 2][j % 2]);
        if (folds && j / 2 != pad) multiply_add<S>(to[j % 2], beyond[j / 2], weight[ky * K + j / 2][j % 2]);
      }
    };
#pragma unroll
    for (int ky = 0; ky < K; ky++) add(sum[ky], ky);
    if (border == kFolded && m == 0) add(sum[0], K - 1);                 // row 1 has what comes out in row −1
    if (border == kFolded && m == shape.height - 1) add(sum[K - 1], 0);  // and the last but one that below the last
    S* to = output + (m - pad) * (shape.width * shape.channels);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int column = left + eighth + 8 * half;
      float (&whole)[2][4] = sum[K - 1];
      const auto pair = [&](int q) { return pack(S(whole[q][2 * half]), S(whole[q][2 * half + 1])); };
      if (m - pad >= top && column < shape.width)
        *reinterpret_cast<Four*>(to + column * shape.channels) = Four{pair(0), pair(1)};
    }
#pragma unroll
    for (int j = 8 * K - 1; j >= 0; j--)
      sum[j / 8][j / 4 % 2][j % 4] = j < 8 ? shift[j / 4][j % 4] : sum[(j - 8) / 8][j / 4 % 2][j % 4];
#pragma unroll
    for (int j = 0; j < 4 * K; j++) pixels[j / 4][j % 4] = next[j / 4][j % 4];
  }
}

// The sums over strips number `part`, `part` + `count` and so on. Sum q, r of a lane is that of output
// 2 · (lane / 4) + r / 2 and input 2 · (2 · (lane % 4) + r % 2) + q.
template <class S, int K, Border border>
__global__ void __launch_bounds__(kThreads, 4)
    adaconv_channels_correlate(const S* x, const S* dy, float* parts, Convolution shape, int rows, int count,
                               int64_t tasks) {
  constexpr int pad = K / 2, taps = K * K;
  const int64_t task = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (task >= tasks) return;
  const int lane = threadIdx.x % 32, eighth = lane / 4, quarter = lane % 4;
  const int blocks = shape.channels / kSide, across = (shape.width + kSide - 1) / kSide;
  const int strips = across * ((shape.height + rows - 1) / rows), channel = task % blocks * kSide;
  const int part = task / blocks % count;
  const int64_t sample = task / blocks / count, image = sample * shape.height * shape.width * shape.channels;
  const S *input = x + image + channel + 2 * eighth, *output = dy + image + channel + 2 * eighth;

  float sum[taps][2][4] = {};
#pragma unroll 1
  for (int strip = part; strip < strips; strip += count) {
    const int left = strip % across * kSide + 2 * quarter, top = strip / across * rows;
    const int bottom = min(top + rows, shape.height);
    int places[2][K + 1], own[2][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int j = 0; j <= K; j++) places[half][j] = place<border>(left + 8 * half + j - pad, shape);
#pragma unroll
      for (int j = 0; j < 2; j++) own[half][j] = place<kZeros>(left + 8 * half + j, shape);
    }
    uint32_t d[K][4] = {};  // of row m + pad − ky of dy in place ky
#pragma unroll 1
    for (int m = top - pad; m < bottom + pad; m++) {
#pragma unroll
      for (int j = 4 * K - 1; j >= 4; j--) d[j / 4][j % 4] = d[j / 4 - 1][j % 4];
      const int row = m + pad;
      const S* from = row < bottom ? row_of<kZeros>(output, row, shape) : nullptr;
      const S* beside = row_of<border>(input, m, shape);
      uint32_t value[2][K + 1];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t first = load<uint32_t>(from, own[half][0]), second = load<uint32_t>(from, own[half][1]);
        d[0][2 * half] = lows(first, second), d[0][2 * half + 1] = highs(first, second);
#pragma unroll
        for (int j = 0; j <= K; j++) value[half][j] = load<uint32_t>(beside, places[half][j]);
      }
#pragma unroll
      for (int kx = 0; kx < K; kx++) {
        const uint32_t even[2] = {lows(value[0][kx], value[0][kx + 1]), lows(value[1][kx], value[1][kx + 1])};
        const uint32_t odd[2] = {highs(value[0][kx], value[0][kx + 1]), highs(value[1][kx], value[1][kx + 1])};
#pragma unroll
        for (int ky = 0; ky < K; ky++) {
          multiply_add<S>(sum[ky * K + kx][0], d[ky], even);
          multiply_add<S>(sum[ky * K + kx][1], d[ky], odd);
        }
      }
    }
  }
  const int64_t samples = tasks / blocks / count;
  float* to = parts + ((part * samples + sample) * shape.channels + channel) * shape.group * taps;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int out = 2 * eighth + j % 4 / 2, in = 2 * (2 * quarter + j % 2) + j / 4;
    if ((out ^ in) >= shape.group) continue;
    float* line = to + (out * shape.group + (in & (shape.group - 1))) * taps;
#pragma unroll
    for (int t = 0; t < taps; t++) line[t] = sum[t][j / 4][j % 4];
  }
}

template <class S>
void convolve(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
              const Convolution& shape) {
  const int64_t columns = x.size(0) * (shape.channels / kSide) * blocks_of(shape.width, kSide);
  int rows = 32;
  while (rows > 4 && columns * blocks_of(shape.height, rows) < kEnough) rows /= 2;
  const int64_t tasks = columns * blocks_of(shape.height, rows);
  launch(shape.size == 1 ? adaconv_channels<S, 1, kZeros>
         : shape.fold    ? adaconv_channels<S, 3, kFolded>
         : shape.reflect ? adaconv_channels<S, 3, kReflected>
                         : adaconv_channels<S, 3, kZeros>,
         blocks_of(tasks, kWarps), kThreads, 0, x.const_data_ptr<S>(), kernel.const_data_ptr<S>(),
         bias.defined() ? bias.const_data_ptr<S>() : nullptr, y.mutable_data_ptr<S>(), shape, rows, tasks);
}

template <class S>
at::Tensor correlate(const at::Tensor& x, const at::Tensor& dy, const Convolution& shape) {
  constexpr int rows = 16;
  const int64_t strips = blocks_of(shape.width, kSide) * blocks_of(shape.height, rows);
  const int64_t columns = x.size(0) * (shape.channels / kSide);
  const int64_t count = std::clamp<int64_t>(kEnough / columns, 1, std::min<int64_t>(strips, 64));
  const int k = shape.size;
  at::Tensor parts = at::empty({count, x.size(0), shape.channels, shape.group, k, k}, x.options().dtype(at::kFloat));
  launch(k == 1          ? adaconv_channels_correlate<S, 1, kZeros>
         : shape.reflect ? adaconv_channels_correlate<S, 3, kReflected>
                         : adaconv_channels_correlate<S, 3, kZeros>,
         blocks_of(columns * count, kWarps), kThreads, 0, x.const_data_ptr<S>(), dy.const_data_ptr<S>(),
         parts.mutable_data_ptr<float>(), shape, rows, int(count), columns * count);
  return parts;
}

}  // namespace

bool on_tensor_cores(const at::Tensor& x, const Convolution& shape) {
  const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  if (!half || order_of(x) != at::MemoryFormat::ChannelsLast || (shape.size != 1 && shape.size != 3) ||
      shape.channels % kSide != 0 || kSide % shape.group != 0 ||
      x.numel() / x.size(0) > std::numeric_limits<int>::max() / 2 ||
      reinterpret_cast<uintptr_t>(x.const_data_ptr()) % sizeof(Four) != 0)
    return false;
  return compute_capability(x.device()) >= 8;
}

void convolve_channels(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
                       const Convolution& shape) {
  x.scalar_type() == at::kHalf ? convolve<at::Half>(x, kernel, bias, y, shape)
                               : convolve<at::BFloat16>(x, kernel, bias, y, shape);
}

at::Tensor correlate_channels(const at::Tensor& x, const at::Tensor& dy, const Convolution& shape) {
  return x.scalar_type() == at::kHalf ? correlate<at::Half>(x, dy, shape) : correlate<at::BFloat16>(x, dy, shape);
}

}  // namespace adaconv
