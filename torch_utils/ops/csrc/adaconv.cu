// AdaConv on the GPU: every sample convolved with its own grouped kernel, "same" size. See adaconv.cpp for the
// formulas.
//
// Forward and gradient by x: adaconv_rows, for 1x1 and 3x3, computes a strip of pixels of a column in each thread, for
// up to 8 outputs of a group; threads read x through the L1 cache, and the weights from shared memory. adaconv_any, for
// other sizes, has the inputs of a tile pass through shared memory one by one. The gradient by the
// kernel is in adaconv_grad_kernel.cu. Half precision in channels-last memory goes to adaconv_channels.cu; all else is
// computed in planes.
//
// Where the border was reflected, the gradient by a pixel near it is that by the pixel and by its reflections: outputs
// of the same convolution of dy, beyond the border. They are added up before the sum is rounded and stored.

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "adaconv.cuh"
#include "common.h"
#include "cuda.cuh"

namespace {

using namespace adaconv;

constexpr int kTileX = 32, kTileY = 8, kPixels = 2;  // threads of a block, and rows for each thread
constexpr int kThreads = 256;
constexpr int kInputs = 32;  // of a group, whose weights are in shared memory at once

// Calls f(std::integral_constant<int, t>) for t < N.
template <int N, int t = 0, class F>
__device__ __forceinline__ void for_taps(F f) {
  if constexpr (t < N) {
    f(std::integral_constant<int, t>{});
    for_taps<N, t + 1>(f);
  }
}

// The outputs of every group that a launch computes: `count` blocks from `first` on.
struct Outputs {
  int first, count;
};

// The places beyond a border of which i is the reflection, within `pad` of it: with `which` = 1 beyond the first
// border, 2 beyond the last; i itself for 0. Where there is none, kNowhere.
constexpr int kNowhere = std::numeric_limits<int>::min() / 2;

__device__ int reflection(int i, int size, int pad, int which) {
  if (which == 0) return i;
  if (which == 1) return i >= 1 && i <= pad ? -i : kNowhere;
  return i <= size - 2 && i >= size - 1 - pad ? 2 * (size - 1) - i : kNowhere;
}

// The weights of a tap for O outputs, in as few loads as can be.
template <class A, int O>
struct alignas(sizeof(A) * O < 16 ? sizeof(A) * O : 16) Weights {
  A of[O];
};

// How many rows a thread computes: as many as there are registers for.
template <class A>
constexpr int kRows = sizeof(A) == 8 ? 2 : 8;

// Adds to O outputs of each row what a tap of an input makes of it.
template <int t, int K, Border border, class A, int rows, int O>
__device__ __forceinline__ void add_tap(A (&sum)[rows][O], const A (&window)[rows + K - 1][K],
                                        const Weights<A, O>& weight, int top, int height) {
  constexpr int ky = t / K, kx = t % K;
#pragma unroll
  for (int p = 0; p < rows; p++) {
    A value = window[p + ky][kx];
    if (border == kFolded && ky == 2 && p == 1 && top == 0) value += window[p][kx];
    if (border == kFolded && ky == 0 && p == rows - 2 && top == height - rows) value += window[p + 2][kx];
#pragma unroll
    for (int o = 0; o < O; o++) sum[p][o] += weight.of[o] * value;
  }
}

// O outputs of a group from `first` + blockIdx.z · O on, K × K taps. kFolded wants whole strips.
template <class S, int O, int K, Border border>
__global__ void __launch_bounds__(kThreads, 2)
    adaconv_rows(const S* x, const S* kernel, const S* bias, S* y, Convolution shape, int first) {
  using A = Accumulate<S>;
  using W = Weights<A, O>;
  constexpr int rows = kRows<A>, taps = K * K;
  const int group = shape.group, o0 = first + blockIdx.z * O;
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
  const int column = thread % shape.width, top = thread / shape.width * rows;
  const int64_t plane = int64_t(shape.height) * shape.width, g = blockIdx.y;  // of all groups of all samples
  const S* kernels = kernel + g * group * group * taps;
  const S* input = x + g * group * plane;

  A sum[rows][O];
#pragma unroll
  for (int o = 0; o < O; o++) {
    const A shift = bias ? static_cast<A>(bias[g * group + o0 + o]) : A(0);
#pragma unroll
    for (int p = 0; p < rows; p++) sum[p][o] = shift;
  }
  const auto add = [&](const W* weights) {
    A window[rows + K - 1][K];
    load_window<S, rows + K - 1, K, border>(input, top - K / 2, column, shape, window);
    for_taps<taps>([&](auto t) { add_tap<t.value, K, border>(sum, window, weights[t.value], top, shape.height); });
  };
  if constexpr (O == 1) {  // no thread reads many weights
#pragma unroll 1
    for (int i = 0; i < group; i++, input += plane) {
      const S* of = kernels + (shape.turned ? int64_t(i) * group + o0 : int64_t(o0) * group + i) * taps;
      W weights[taps];
#pragma unroll
      for (int t = 0; t < taps; t++) weights[t].of[0] = static_cast<A>(shape.turned ? of[taps - 1 - t] : of[t]);
      add(weights);
    }
  } else {
    __shared__ W weights[kInputs * taps];
    for (int i0 = 0; i0 < group; i0 += kInputs) {
      const int inputs = min(kInputs, group - i0);
      __syncthreads();  // the weights before have been read
#pragma unroll 1
      for (int j = threadIdx.x; j < inputs * taps * O; j += blockDim.x) {
        const int o = o0 + j % O, t = j / O % taps, i = i0 + j / (O * taps);
        const int line = shape.turned ? i * group + o : o * group + i, tap = shape.turned ? taps - 1 - t : t;
        weights[j / O].of[j % O] = static_cast<A>(kernels[int64_t(line) * taps + tap]);
      }
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < inputs; i++, input += plane) add(weights + i * taps);
    }
  }
  S* output = y + (g * group + o0) * plane + (top * shape.width + column);
#pragma unroll
  for (int p = 0; p < rows; p++, output += shape.width) {
    if (top + p >= shape.height) break;
    S* to = output;
#pragma unroll
    for (int o = 0; o < O; o++, to += plane) *to = static_cast<S>(sum[p][o]);
  }
}

// O outputs of a group from `first` + blockIdx.z · O on, any number of taps.
template <class S, int O>
__global__ void __launch_bounds__(kThreads, 2)
    adaconv_any(const S* x, const S* kernel, const S* bias, S* y, Convolution shape, int first) {
  using A = Accumulate<S>;
  extern __shared__ char memory[];
  const int k = shape.size, pad = k / 2, taps = k * k, group = shape.group;
  const int tile_width = kTileX + k - 1, tile_height = kTileY * kPixels + k - 1;
  A* tile = reinterpret_cast<A*>(memory);
  A* weight = tile + tile_width * tile_height;  // [taps][O]

  const int tiles_x = (shape.width + kTileX - 1) / kTileX;
  const int x0 = blockIdx.x % tiles_x * kTileX, y0 = blockIdx.x / tiles_x * kTileY * kPixels;
  const int64_t plane = int64_t(shape.height) * shape.width;
  const int64_t g = blockIdx.y;  // of all groups of all samples
  const int o0 = first + blockIdx.z * O;
  const S* kernels = kernel + g * group * group * taps;
  const int thread = threadIdx.y * kTileX + threadIdx.x;

  A sum[kPixels][O];
  for (int p = 0; p < kPixels; p++)
    for (int o = 0; o < O; o++) sum[p][o] = bias ? static_cast<A>(bias[g * group + o0 + o]) : A(0);

  for (int i = 0; i < group; i++) {
    const S* input = x + (g * group + i) * plane;
    __syncthreads();  // the tile before has been read
    for (int j = thread; j < tile_width * tile_height; j += kTileX * kTileY)
      tile[j] = pixel<S, A>(input, y0 + j / tile_width - pad, x0 + j % tile_width - pad, shape.height, shape.width,
                            shape.reflect);
    for (int j = thread; j < taps * O; j += kTileX * kTileY) {
      const int t = j / O, o = o0 + j % O;
      weight[j] = static_cast<A>(shape.turned ? kernels[(int64_t(i) * group + o) * taps + taps - 1 - t]
                                              : kernels[(int64_t(o) * group + i) * taps + t]);
    }
    __syncthreads();
    for (int ky = 0; ky < k; ky++) {
      for (int kx = 0; kx < k; kx++) {
        A value[kPixels];
        for (int p = 0; p < kPixels; p++)
          value[p] = tile[(threadIdx.y + p * kTileY + ky) * tile_width + threadIdx.x + kx];
#pragma unroll
        for (int o = 0; o < O; o++)
          for (int p = 0; p < kPixels; p++) sum[p][o] += weight[(ky * k + kx) * O + o] * value[p];
      }
    }
    if (!shape.fold) continue;
    // the same for the reflections of a pixel: of the taps there few fall on the image, and the tile holds those values
#pragma unroll
    for (int p = 0; p < kPixels; p++)
      for (int which = 1; which < 9; which++) {
        const int row = reflection(y0 + threadIdx.y + p * kTileY, shape.height, pad, which / 3);
        const int column = reflection(x0 + threadIdx.x, shape.width, pad, which % 3);
        if (row == kNowhere || column == kNowhere) continue;
        for (int ky = max(0, pad - row); ky < k && row + ky - pad < shape.height; ky++)
          for (int kx = max(0, pad - column); kx < k && column + kx - pad < shape.width; kx++) {
            const A value = tile[(row + ky - y0) * tile_width + column + kx - x0];
#pragma unroll
            for (int o = 0; o < O; o++) sum[p][o] += weight[(ky * k + kx) * O + o] * value;
          }
      }
  }
  const int column = x0 + threadIdx.x;
  for (int p = 0; p < kPixels; p++) {
    const int row = y0 + threadIdx.y + p * kTileY;
    if (row < shape.height && column < shape.width)
      for (int o = 0; o < O; o++)
        y[(g * group + o0 + o) * plane + int64_t(row) * shape.width + column] = static_cast<S>(sum[p][o]);
  }
}

// Calls f(first group, groups) for as many at a time as the grid's second dimension holds.
template <class F>
void for_groups(int64_t groups, F f) {
  for (int64_t g = 0; g < groups; g += 65535) {
    const int64_t chunk = std::min<int64_t>(groups - g, 65535);
    f(g, chunk);
  }
}

template <class S, int O>
void launch_convolve(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
                     const Convolution& shape, Outputs outputs) {
  using A = Accumulate<S>;
  const int k = shape.size;
  const int64_t plane = int64_t(shape.height) * shape.width * shape.group;
  const int64_t values = int64_t(shape.group) * shape.group * k * k;
  const auto run = [&](auto function, int64_t blocks, dim3 threads, size_t memory) {
    for_groups(x.size(0) * shape.channels / shape.group, [&](int64_t g, int64_t groups) {
      launch(function, dim3(blocks, groups, outputs.count), threads, memory, x.const_data_ptr<S>() + g * plane,
             kernel.const_data_ptr<S>() + g * values,
             bias.defined() ? bias.const_data_ptr<S>() + g * shape.group : nullptr, y.mutable_data_ptr<S>() + g * plane,
             shape, outputs.first);
    });
  };
  if (k == 1 || (k == 3 && (!shape.fold || shape.height % kRows<A> == 0))) {
    const int64_t strips = int64_t(shape.width) * blocks_of(shape.height, kRows<A>);
    const int64_t threads = std::min<int64_t>(blocks_of(strips, 32) * 32, kThreads);
    run(k == 1          ? adaconv_rows<S, O, 1, kZeros>
        : shape.fold    ? adaconv_rows<S, O, 3, kFolded>
        : shape.reflect ? adaconv_rows<S, O, 3, kReflected>
                        : adaconv_rows<S, O, 3, kZeros>,
        blocks_of(strips, threads), threads, 0);
    return;
  }
  const size_t memory = sizeof(A) * ((kTileX + k - 1) * (kTileY * kPixels + k - 1) + k * k * O);
  TORCH_CHECK_VALUE(memory <= 48 << 10,
                    "kernel: " + std::to_string(k) + "x" + std::to_string(k) + " is too large for the GPU kernel");
  run(adaconv_any<S, O>, blocks_of(shape.width, kTileX) * blocks_of(shape.height, kTileY * kPixels),
      dim3(kTileX, kTileY), memory);
}

template <class S>
void convolve(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
              const Convolution& shape) {
  const int group = shape.group;
  int o = group / 8 * 8;
  if (o) launch_convolve<S, 8>(x, kernel, bias, y, shape, {0, o / 8});
  if (group - o >= 4) launch_convolve<S, 4>(x, kernel, bias, y, shape, {o, 1}), o += 4;
  if (group - o >= 2) launch_convolve<S, 2>(x, kernel, bias, y, shape, {o, 1}), o += 2;
  if (group - o >= 1) launch_convolve<S, 1>(x, kernel, bias, y, shape, {o, 1});
}

at::Tensor adaconv_cuda(const at::Tensor& x, const at::Tensor& kernel, const std::optional<at::Tensor>& bias,
                        bool reflect) {
  const Convolution shape = check(x, kernel.sizes(), kernel, reflect);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor shift = check_shift(x, bias);
  if (x.numel() == 0) return empty_output(x.sizes(), x.options(), order_of(x));
  if (on_tensor_cores(x, shape)) {
    at::Tensor y = empty_output(x.sizes(), x.options(), order_of(x));
    convolve_channels(x, kernel.contiguous(), shift, y, shape);
    return y;
  }
  const at::Tensor planes = reorder(x, at::MemoryFormat::Contiguous);
  at::Tensor y = empty_output(x.sizes(), x.options());
  DISPATCH_FLOATING(x.scalar_type(), "adaconv",
                    [&] { convolve<scalar_t>(planes, kernel.contiguous(), shift, y, shape); });
  return reorder(y, order_of(x));
}

at::Tensor adaconv_grad_x_cuda(const at::Tensor& dy_, const at::Tensor& kernel, bool reflect) {
  Convolution shape = check(dy_, kernel.sizes(), kernel, reflect);
  const c10::cuda::CUDAGuard guard(dy_.device());
  if (dy_.numel() == 0) return empty_output(dy_.sizes(), dy_.options(), order_of(dy_));
  shape.reflect = false, shape.turned = true, shape.fold = reflect && shape.size > 1;
  if (on_tensor_cores(dy_, shape)) {
    at::Tensor dx = empty_output(dy_.sizes(), dy_.options(), order_of(dy_));
    convolve_channels(dy_, kernel.contiguous(), at::Tensor(), dx, shape);
    return dx;
  }
  const at::Tensor dy = reorder(dy_, at::MemoryFormat::Contiguous);
  at::Tensor dx = empty_output(dy.sizes(), dy.options());
  DISPATCH_FLOATING(dy.scalar_type(), "adaconv_grad_x",
                    [&] { convolve<scalar_t>(dy, kernel.contiguous(), at::Tensor(), dx, shape); });
  return reorder(dx, order_of(dy_));
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) {
  m.impl("adaconv", &adaconv_cuda);
  m.impl("adaconv_grad_x", &adaconv_grad_x_cuda);
}
