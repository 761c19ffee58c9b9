// AdaConv on the GPU: every sample convolved with its own grouped kernel, "same" size. See adaconv.cpp for the
// formulas.
//
// adaconv_convolve (forward, grad_x): a block of threads computes a tile of pixels of one group of one sample, 8
// outputs at a time; the inputs of the tile pass through shared memory one by one. adaconv_correlate (grad_kernel): a
// block sums up over a part of the image for one input and some outputs, all taps at once.
//
// Where the border was reflected, the gradient by a pixel near it is that by the pixel and by its reflections: outputs
// of the same convolution of dy, beyond the border. adaconv_convolve adds them up (`fold`) before it rounds and stores.

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kTileX = 32, kTileY = 8, kPixels = 2;  // threads of a block, and rows for each thread
constexpr int kThreads = 256;

// The sizes of x and of its kernels [.., C/G, k, k], what lies beyond the border, and whether the kernels are turned
// round: inputs and outputs exchanged, taps flipped, as the gradient by x has them. With `fold`, what comes out beyond
// the border is added to where the border was reflected from.
struct Convolution {
  int channels, height, width, group, size;
  bool reflect = false, turned = false, fold = false;
};

// The outputs of every group that a launch computes: `count` blocks from `first` on.
struct Outputs {
  int first, count;
};

__device__ int reflected(int i, int size) {
  i = abs(i);
  return i < size ? i : 2 * (size - 1) - i;
}

// Value (y, x) of a plane, with what lies beyond its border.
template <class S, class A>
__device__ A pixel(const S* plane, int y, int x, int height, int width, bool reflect) {
  if (reflect) {
    y = reflected(y, height);
    x = reflected(x, width);
  }
  return y >= 0 && y < height && x >= 0 && x < width ? static_cast<A>(plane[int64_t(y) * width + x]) : A(0);
}

// The places beyond a border of which i is the reflection, within `pad` of it: with `which` = 1 beyond the first
// border, 2 beyond the last; i itself for 0. Where there is none, kNowhere.
constexpr int kNowhere = std::numeric_limits<int>::min() / 2;

__device__ int reflection(int i, int size, int pad, int which) {
  if (which == 0) return i;
  if (which == 1) return i >= 1 && i <= pad ? -i : kNowhere;
  return i <= size - 2 && i >= size - 1 - pad ? 2 * (size - 1) - i : kNowhere;
}

// O outputs of a group from `first` + blockIdx.z · O on. K is the kernel's size, or 0 if the compiler does not know it.
template <class S, int O, int K, bool fold>
__global__ void __launch_bounds__(kTileX* kTileY)
    adaconv_convolve(const S* x, const S* kernel, const S* bias, S* y, Convolution shape, int first) {
  using A = Accumulate<S>;
  extern __shared__ char memory[];
  const int k = K ? K : shape.size, pad = k / 2, taps = k * k, group = shape.group;
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
#pragma unroll
      for (int kx = 0; kx < k; kx++) {
        A value[kPixels];
        for (int p = 0; p < kPixels; p++)
          value[p] = tile[(threadIdx.y + p * kTileY + ky) * tile_width + threadIdx.x + kx];
#pragma unroll
        for (int o = 0; o < O; o++)
          for (int p = 0; p < kPixels; p++) sum[p][o] += weight[(ky * k + kx) * O + o] * value[p];
      }
    }
    if constexpr (!fold) continue;
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

template <class S, int O, int K>
void launch_convolve(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
                     const Convolution& shape, Outputs outputs) {
  const int64_t groups = x.size(0) * shape.channels / shape.group;
  const int64_t tiles = blocks_of(shape.width, kTileX) * blocks_of(shape.height, kTileY * kPixels);
  const size_t memory = sizeof(Accumulate<S>) *
                        ((kTileX + shape.size - 1) * (kTileY * kPixels + shape.size - 1) + shape.size * shape.size * O);
  TORCH_CHECK_VALUE(memory <= 48 << 10, "kernel: ", shape.size, "x", shape.size, " is too large for the GPU kernel");
  // the grid's second dimension ends at 65535
  for (int64_t g = 0; g < groups; g += 65535) {
    const int64_t chunk = std::min<int64_t>(groups - g, 65535);
    const int64_t plane = int64_t(shape.height) * shape.width * shape.group;
    const int64_t values = int64_t(shape.group) * shape.group * shape.size * shape.size;
    launch(shape.fold && K != 1 ? adaconv_convolve<S, O, K, K != 1> : adaconv_convolve<S, O, K, false>,
           dim3(tiles, chunk, outputs.count), dim3(kTileX, kTileY), memory, x.const_data_ptr<S>() + g * plane,
           kernel.const_data_ptr<S>() + g * values,
           bias.defined() ? bias.const_data_ptr<S>() + g * shape.group : nullptr, y.mutable_data_ptr<S>() + g * plane,
           shape, outputs.first);
  }
}

template <class S, int O>
void launch_convolve(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
                     const Convolution& shape, Outputs outputs) {
  switch (shape.size) {
    case 1: return launch_convolve<S, O, 1>(x, kernel, bias, y, shape, outputs);
    case 3: return launch_convolve<S, O, 3>(x, kernel, bias, y, shape, outputs);
    default: return launch_convolve<S, O, 0>(x, kernel, bias, y, shape, outputs);
  }
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

// Sums of dy[o] · x[i] over part blockIdx.z of the image, for O outputs and K × T taps (T columns from `tap` on).
template <class S, int O, int K, int T>
__global__ void __launch_bounds__(kThreads)
    adaconv_correlate(const S* x, const S* dy, Accumulate<S>* parts, Convolution shape, int64_t groups, int tap) {
  using A = Accumulate<S>;
  constexpr int sums = O * K * T, whole = sums / 32 * 32, rest = sums % 32;
  static_assert(whole <= 32);
  __shared__ A shared[kThreads / 32][sums];
  const int group = shape.group, k = shape.size, taps = k * k, pad = k / 2;
  const int blocks = (group + O - 1) / O;
  const int64_t g = blockIdx.x / (int64_t(blocks) * group);
  const int o0 = blockIdx.x / group % blocks * O, i = blockIdx.x % group, first_row = K > 1 ? 0 : tap / k;
  const int first_column = K > 1 ? 0 : tap % k;
  const int64_t plane = int64_t(shape.height) * shape.width;
  const S* input = x + (g * group + i) * plane;
  const S* output = dy + (g * group + o0) * plane;

  A sum[sums] = {};  // [O][K][T]
  for (int j = blockIdx.z * kThreads + threadIdx.x; j < plane; j += gridDim.z * kThreads) {
    const int row = j / shape.width, column = j % shape.width;
    const int top = row + first_row - pad, left = column + first_column - pad;
    const bool within = top >= 0 && top + K <= shape.height && left >= 0 && left + T <= shape.width;
    const S* window = input + int64_t(top) * shape.width + left;
    A d[O];
#pragma unroll
    for (int o = 0; o < O; o++) d[o] = o0 + o < group ? static_cast<A>(output[o * plane + j]) : A(0);
#pragma unroll
    for (int ky = 0; ky < K; ky++)
#pragma unroll
      for (int kx = 0; kx < T; kx++) {
        const A value = within ? static_cast<A>(window[ky * shape.width + kx])
                               : pixel<S, A>(input, top + ky, left + kx, shape.height, shape.width, shape.reflect);
#pragma unroll
        for (int o = 0; o < O; o++) sum[(o * K + ky) * T + kx] += d[o] * value;
      }
  }
  // over the lanes of each warp, then over the warps, all sums at once
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (whole > 0) {
    A part[32];
#pragma unroll
    for (int n = 0; n < 32; n++) part[n] = sum[n];
    shared[warp][lane] = warp_sums<32>(part);
  }
  if constexpr (rest > 0) {
    constexpr int size = rest > 16 ? 32 : rest > 8 ? 16 : rest > 4 ? 8 : 4, lanes = 32 / size;
    A part[size] = {};
#pragma unroll
    for (int n = 0; n < rest; n++) part[n] = sum[whole + n];
    const A total = warp_sums<size>(part);
    if (lane % lanes == 0 && lane / lanes < rest) shared[warp][whole + lane / lanes] = total;
  }
  __syncthreads();
  const int n = threadIdx.x, o = n / (K * T), ky = n / T % K, kx = n % T;
  if (n >= sums || o0 + o >= group) return;
  A total = 0;
  for (int from = 0; from < kThreads / 32; from++) total += shared[from][n];
  parts[(blockIdx.z * groups * group + g * group + o0 + o) * group * taps + int64_t(i) * taps + (first_row + ky) * k +
        first_column + kx] = total;
}

template <class S, int O, int K, int T>
void launch_correlate(const at::Tensor& x, const at::Tensor& dy, at::Tensor& parts, const Convolution& shape, int tap) {
  const int64_t groups = x.size(0) * shape.channels / shape.group;
  const int64_t blocks = groups * blocks_of(shape.group, O) * shape.group;
  launch(adaconv_correlate<S, O, K, T>, dim3(blocks, 1, parts.size(0)), kThreads, 0, x.const_data_ptr<S>(),
         dy.const_data_ptr<S>(), parts.mutable_data_ptr<Accumulate<S>>(), shape, groups, tap);
}

Convolution check(const at::Tensor& x, at::IntArrayRef kernel, const at::Tensor& other, bool reflect) {
  check_adaconv(x, kernel, other, reflect);
  constexpr int64_t most = std::numeric_limits<int>::max();
  TORCH_CHECK_VALUE(x.size(2) * x.size(3) <= most / 2 && x.size(1) <= most && kernel[3] < 1 << 14 &&
                        x.size(0) * x.size(1) * kernel[2] <= most,
                    "x: ", x.sizes(), " is too large for the GPU kernel");
  return {int(x.size(1)), int(x.size(2)), int(x.size(3)), int(kernel[2]), int(kernel[3]), reflect};
}

at::Tensor adaconv_cuda(const at::Tensor& x, const at::Tensor& kernel, const std::optional<at::Tensor>& bias,
                        bool reflect) {
  const Convolution shape = check(x, kernel.sizes(), kernel, reflect);
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor shift = check_shift(x, bias);
  at::Tensor y = empty_output(x.sizes(), x.options());
  if (y.numel() == 0) return y.contiguous(order_of(x));
  DISPATCH_FLOATING(x.scalar_type(), "adaconv",
                    [&] { convolve<scalar_t>(x.contiguous(), kernel.contiguous(), shift, y, shape); });
  return y.contiguous(order_of(x));
}

at::Tensor adaconv_grad_x_cuda(const at::Tensor& dy_, const at::Tensor& kernel, bool reflect) {
  Convolution shape = check(dy_, kernel.sizes(), kernel, reflect);
  const c10::cuda::CUDAGuard guard(dy_.device());
  if (dy_.numel() == 0) return empty_output(dy_.sizes(), dy_.options(), order_of(dy_));
  const at::Tensor dy = dy_.contiguous();
  shape.reflect = false, shape.turned = true, shape.fold = reflect && shape.size > 1;
  at::Tensor dx = empty_output(dy.sizes(), dy.options());
  DISPATCH_FLOATING(dy.scalar_type(), "adaconv_grad_x",
                    [&] { convolve<scalar_t>(dy, kernel.contiguous(), at::Tensor(), dx, shape); });
  return dx.contiguous(order_of(dy_));
}

at::Tensor adaconv_grad_kernel_cuda(const at::Tensor& x_, const at::Tensor& dy_, at::IntArrayRef sizes, bool reflect) {
  const Convolution shape = check(x_, sizes, dy_, reflect);
  check_like(x_, dy_, "dy", "x");
  const c10::cuda::CUDAGuard guard(x_.device());
  at::Tensor dkernel = empty_output(sizes, x_.options());
  if (x_.numel() == 0) return dkernel.zero_();
  const at::Tensor x = x_.contiguous(), dy = dy_.contiguous();
  DISPATCH_FLOATING(x.scalar_type(), "adaconv_grad_kernel", [&] {
    // parts of the image, so that few groups keep the GPU busy too; each is summed up in a fixed order
    const int64_t groups = x.size(0) * shape.channels, plane = x.size(2) * x.size(3);
    const int64_t count = std::clamp<int64_t>(std::min(4096 / groups, plane / (8 * kThreads)), 1, 64);
    at::Tensor parts = at::empty({count, x.size(0) * x.size(1), shape.group, shape.size, shape.size},
                                 x.options().dtype(c10::CppTypeToScalarType<Accumulate<scalar_t>>::value));
    if (shape.size == 1) {
      launch_correlate<scalar_t, 8, 1, 1>(x, dy, parts, shape, 0);
    } else if (shape.size == 3) {
      shape.group == 1 ? launch_correlate<scalar_t, 1, 3, 3>(x, dy, parts, shape, 0)
                       : launch_correlate<scalar_t, 4, 3, 3>(x, dy, parts, shape, 0);
    } else {
      for (int tap = 0; tap < shape.size * shape.size; tap++)
        launch_correlate<scalar_t, 8, 1, 1>(x, dy, parts, shape, tap);
    }
    dkernel.copy_(parts.sum(0).view(sizes));
  });
  return dkernel;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) {
  m.impl("adaconv", &adaconv_cuda);
  m.impl("adaconv_grad_x", &adaconv_grad_x_cuda);
  m.impl("adaconv_grad_kernel", &adaconv_grad_kernel_cuda);
}
