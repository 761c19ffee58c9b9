// AdaConv's gradient by the kernel on the GPU: each tap's is a sum of x · dy over the image. See adaconv.cpp for the
// formulas. A warp sums up over a part of the image for one input and some outputs of a group, all taps at once.

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "adaconv.cuh"
#include "common.h"
#include "cuda.cuh"

namespace {

using namespace adaconv;

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Inputs of a group that a block of adaconv_correlate takes: a power of two, one for each warp at most.
C10_HOST_DEVICE constexpr int inputs_of_block(int group) { return group >= kWarps ? kWarps : group > 2 ? 4 : group; }

// Sums of dy[o] · x[i] over a part of the image, for O outputs and K × K taps; with K = 1, for tap number `tap`. A warp
// takes an input; warps of a block that take the same one sum up over different parts. All read the same dy.
template <class S, int O, int K, Border border>
__global__ void __launch_bounds__(kThreads, 2)
    adaconv_correlate(const S* x, const S* dy, Accumulate<S>* parts, Convolution shape, int64_t groups, int tap) {
  using A = Accumulate<S>;
  constexpr int rows = sizeof(A) == 8 ? 1 : 4, sums = O * K * K, whole = sums / 32 * 32, rest = sums % 32;
  static_assert(whole <= 32);
  const int group = shape.group, k = shape.size, taps = k * k, pad = k / 2;
  const int inputs = inputs_of_block(group), segments = kWarps / inputs, warp = threadIdx.x / 32,
            lane = threadIdx.x % 32;
  const int blocks_o = (group + O - 1) / O, blocks_i = (group + inputs - 1) / inputs;
  const int64_t g = blockIdx.x / (blocks_o * blocks_i);
  const int o0 = blockIdx.x / blocks_i % blocks_o * O, i = blockIdx.x % blocks_i * inputs + warp % inputs;
  const int part = blockIdx.z * segments + warp / inputs, count = gridDim.z * segments;
  if (i >= group) return;
  const int64_t plane = int64_t(shape.height) * shape.width;
  const S* input = x + (g * group + i) * plane;
  const S* output = dy + (g * group + o0) * plane;

  A sum[sums] = {};  // [O][K][K]
  const int last = group - 1 - o0, first = part * 32 + lane, step = count * 32;
  int column = first % shape.width, top = first / shape.width * rows;
  int step_right = step % shape.width, step_down = step / shape.width * rows;
  keep(input), keep(output), keep(step_right), keep(step_down);
#pragma unroll 1
  while (top < shape.height) {
    A window[rows + K - 1][K];
    if constexpr (K == 1) {
#pragma unroll
      for (int p = 0; p < rows; p++)
        window[p][0] = pixel<S, A>(input, top + p + tap / k - pad, column + tap % k - pad, shape.height, shape.width,
                                   border == kReflected);
    } else {
      load_window<S, rows + K - 1, K, border>(input, top - pad, column, shape, window);
    }
    const S* from = output + (top * shape.width + column);
#pragma unroll
    for (int o = 0; o < O; o++) {
      keep(from);
#pragma unroll
      for (int p = 0; p < rows; p++) {
        const A d = top + p < shape.height ? static_cast<A>(from[p * shape.width]) : A(0);
#pragma unroll
        for (int t = 0; t < K * K; t++) sum[o * K * K + t] += d * window[p + t / K][t % K];
      }
      if (o < last) from += plane;  // sums of outputs beyond the group are not stored
    }
    column += step_right, top += step_down;
    if (column >= shape.width) column -= shape.width, top += rows;
  }
  // over the lanes, all sums at once; then each lane stores one of them
  A* result = parts + (part * groups + g) * group * group * taps;
  const auto store = [&](int n, A total) {
    const int o = o0 + n / (K * K);
    if (o < group) result[(int64_t(o) * group + i) * taps + tap + n % (K * K)] = total;
  };
  if constexpr (whole > 0) {
    A most[32];
#pragma unroll
    for (int n = 0; n < 32; n++) most[n] = sum[n];
    store(lane, warp_sums<32>(most));
  }
  if constexpr (rest > 0) {
    constexpr int size = rest > 16 ? 32 : rest > 8 ? 16 : rest > 4 ? 8 : rest > 1 ? 4 : 1, lanes = 32 / size;
    A others[size] = {};
#pragma unroll
    for (int n = 0; n < rest; n++) others[n] = sum[whole + n];
    const A total = warp_sums<size>(others);
    if (lane % lanes == 0 && lane / lanes < rest) store(whole + lane / lanes, total);
  }
}

// The sums of an image of one of the groups are made by `count` blocks; the result is their sum, in a fixed order.
template <class S, int O, int K, Border border>
void launch_correlate(const at::Tensor& x, const at::Tensor& dy, at::Tensor& parts, const Convolution& shape, int tap) {
  const int group = shape.group, inputs = inputs_of_block(group);
  const int64_t groups = x.size(0) * shape.channels / group;
  const int64_t blocks = groups * blocks_of(group, O) * blocks_of(group, inputs);
  launch(adaconv_correlate<S, O, K, border>, dim3(blocks, 1, parts.size(0) * inputs / kWarps), kThreads, 0,
         x.const_data_ptr<S>(), dy.const_data_ptr<S>(), parts.mutable_data_ptr<Accumulate<S>>(), shape, groups, tap);
}

template <class S>
void correlate(const at::Tensor& x, const at::Tensor& dy, at::Tensor& parts, const Convolution& shape) {
  if (shape.size == 3) {
    if (shape.group == 1)
      shape.reflect ? launch_correlate<S, 1, 3, kReflected>(x, dy, parts, shape, 0)
                    : launch_correlate<S, 1, 3, kZeros>(x, dy, parts, shape, 0);
    else
      shape.reflect ? launch_correlate<S, 4, 3, kReflected>(x, dy, parts, shape, 0)
                    : launch_correlate<S, 4, 3, kZeros>(x, dy, parts, shape, 0);
    return;
  }
  for (int tap = 0; tap < shape.size * shape.size; tap++)
    shape.reflect ? launch_correlate<S, 8, 1, kReflected>(x, dy, parts, shape, tap)
                  : launch_correlate<S, 8, 1, kZeros>(x, dy, parts, shape, tap);
}

at::Tensor adaconv_grad_kernel_cuda(const at::Tensor& x_, const at::Tensor& dy_, at::IntArrayRef sizes, bool reflect) {
  const Convolution shape = check(x_, sizes, dy_, reflect);
  check_like(x_, dy_, "dy", "x");
  const c10::cuda::CUDAGuard guard(x_.device());
  at::Tensor dkernel = empty_output(sizes, x_.options());
  if (x_.numel() == 0) return dkernel.zero_();
  if (on_tensor_cores(x_, shape) && on_tensor_cores(dy_, shape)) {
    dkernel.copy_(correlate_channels(x_, dy_, shape).sum(0));
    return dkernel;
  }
  constexpr at::MemoryFormat planes = at::MemoryFormat::Contiguous;
  const at::Tensor x = reorder(x_, planes), dy = reorder(dy_, planes);
  DISPATCH_FLOATING(x.scalar_type(), "adaconv_grad_kernel", [&] {
    // parts of the image, so that few groups keep the GPU busy too; each is summed up in a fixed order
    const int inputs = inputs_of_block(shape.group), segments = kWarps / inputs;
    const int64_t blocks = blocks_of(x.size(0) * shape.channels, inputs), plane = x.size(2) * x.size(3);
    const int64_t count = std::clamp<int64_t>(std::min(4096 / blocks, plane / (segments * 1024)), 1, 64);
    at::Tensor parts = at::empty({count * segments, x.size(0) * x.size(1), shape.group, shape.size, shape.size},
                                 x.options().dtype(c10::CppTypeToScalarType<Accumulate<scalar_t>>::value));
    correlate<scalar_t>(x, dy, parts, shape);
    dkernel.copy_(parts.sum(0).view(sizes));
  });
  return dkernel;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("adaconv_grad_kernel", &adaconv_grad_kernel_cuda); }
