// Upsample, filter, downsample on the GPU, for separable filters: a thread for each output. See upfirdn2d.cpp.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "common.h"
#include "cuda.cuh"

namespace {

constexpr int kThreads = 256;

struct Shape {
  int height, width, out_height, out_width, taps, up, down, left, top;
  int64_t beside;  // values that lie beside each other for one pixel: 1, or the channels where they are last
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    upfirdn2d(const S* x, const float* f, S* y, int64_t outputs, Shape shape, double gain) {
  using A = Accumulate<S>;
  extern __shared__ float taps[];
  for (int t = threadIdx.x; t < shape.taps; t += kThreads) taps[t] = f[t];
  __syncthreads();
  for (int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x; j < outputs; j += int64_t(gridDim.x) * kThreads) {
    const int64_t pixel = j / shape.beside;
    const int ox = pixel % shape.out_width, oy = pixel / shape.out_width % shape.out_height;
    const int64_t picture = pixel / (int64_t(shape.out_width) * shape.out_height);
    const S* plane = x + picture * shape.height * shape.width * shape.beside + j % shape.beside;
    // the first taps that fall on a value of x, and that value
    const int start_y = oy * shape.down - shape.top, start_x = ox * shape.down - shape.left;
    const int tap_y = ((-start_y) % shape.up + shape.up) % shape.up;
    const int tap_x = ((-start_x) % shape.up + shape.up) % shape.up;
    A sum = 0;
    for (int ty = tap_y, iy = (start_y + tap_y) / shape.up; ty < shape.taps; ty += shape.up, iy++) {
      if (iy < 0 || iy >= shape.height) continue;
      A row = 0;
      for (int tx = tap_x, ix = (start_x + tap_x) / shape.up; tx < shape.taps; tx += shape.up, ix++)
        if (ix >= 0 && ix < shape.width)
          row += A(taps[tx]) * static_cast<A>(plane[(int64_t(iy) * shape.width + ix) * shape.beside]);
      sum += A(taps[ty]) * row;
    }
    y[j] = static_cast<S>(sum * A(gain));
  }
}

at::Tensor upfirdn2d_cuda(const at::Tensor& x_, const at::Tensor& f, int64_t up, int64_t down, at::IntArrayRef padding,
                          double gain) {
  const auto [height, width] = check_upfirdn2d(x_, f, up, down, padding);
  const int64_t taps = f.numel();
  const c10::cuda::CUDAGuard guard(x_.device());
  const at::MemoryFormat order = order_of(x_);
  at::Tensor y = empty_output({x_.size(0), x_.size(1), height, width}, x_.options(), order);
  if (y.numel() == 0) return y;
  const at::Tensor x = x_.contiguous(order), filter = f.to(at::kFloat).contiguous();
  const Shape shape{int(x.size(2)),  int(x.size(3)),
                    int(height),     int(width),
                    int(taps),       int(up),
                    int(down),       int(padding[0]),
                    int(padding[2]), order == at::MemoryFormat::ChannelsLast ? x.size(1) : 1};
  const int64_t blocks = std::min<int64_t>(blocks_of(y.numel(), kThreads), 1 << 20);
  DISPATCH_FLOATING(x.scalar_type(), "upfirdn2d", [&] {
    upfirdn2d<scalar_t><<<blocks, kThreads, taps * sizeof(float), c10::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<scalar_t>(), filter.const_data_ptr<float>(), y.mutable_data_ptr<scalar_t>(), y.numel(), shape,
        gain);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CUDA, m) { m.impl("upfirdn2d", &upfirdn2d_cuda); }
