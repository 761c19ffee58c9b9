// What AdaConv's two CUDA sources share: sizes, and pixels with what lies beyond the border.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <string>

#include "common.h"
#include "cuda.cuh"

namespace adaconv {

// The sizes of x and of its kernels [.., C/G, k, k], what lies beyond the border, and whether the kernels are turned
// round: inputs and outputs exchanged, taps flipped, as the gradient by x has them. With `fold`, what comes out beyond
// the border is added to where the border was reflected from.
struct Convolution {
  int channels, height, width, group, size;
  bool reflect = false, turned = false, fold = false;
};

// What lies beyond the border: zeros, x reflected; or zeros, and what comes out there is folded back as described
// above.
enum Border { kZeros, kReflected, kFolded };

__device__ inline int reflected(int i, int size) {
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

// The pixels of rows [top, top + R) of a column, K of them side by side in each row; R is that of the outputs + K − 1.
template <class S, int R, int K, Border border>
__device__ __forceinline__ void load_window(const S* plane, int top, int column, const Convolution& shape,
                                            Accumulate<S> (&window)[R][K]) {
  using A = Accumulate<S>;
  static_assert(K == 1 || K == 3);
  const bool left = column > 0, right = column < shape.width - 1;
#pragma unroll
  for (int m = 0; m < R; m++) {
    int row = top + m;
    bool inside = unsigned(row) < unsigned(shape.height);
    if constexpr (border == kReflected) {
      row = max(reflected(row, shape.height), 0);  // rows after the first one beyond the last are of no output
      inside = true;
    }
    const S* from = plane + (row * shape.width + column);
    if constexpr (K == 1) {
      window[m][0] = inside ? static_cast<A>(*from) : A(0);
    } else {
      const A before = inside && left ? static_cast<A>(from[-1]) : A(0);
      const A after = inside && right ? static_cast<A>(from[1]) : A(0);
      window[m][1] = inside ? static_cast<A>(*from) : A(0);
      if constexpr (border == kReflected) {
        window[m][0] = left ? before : after, window[m][2] = right ? after : before;
      } else if constexpr (border == kFolded) {
        window[m][0] = column == shape.width - 2 ? before + after : before;
        window[m][2] = column == 1 ? after + before : after;
      } else {
        window[m][0] = before, window[m][2] = after;
      }
    }
  }
}

inline Convolution check(const at::Tensor& x, at::IntArrayRef kernel, const at::Tensor& other, bool reflect) {
  check_adaconv(x, kernel, other, reflect);
  constexpr int64_t most = std::numeric_limits<int>::max();
  TORCH_CHECK_VALUE(x.size(2) * x.size(3) <= most / 2 && x.size(1) <= most && kernel[3] < 1 << 14 &&
                        x.size(0) * x.size(1) * kernel[2] <= most,
                    "x: " + text(x.sizes()) + " is too large for the GPU kernel");
  return {int(x.size(1)), int(x.size(2)), int(x.size(3)), int(kernel[2]), int(kernel[3]), reflect};
}

// adaconv_channels.cu: half precision in channels-last memory. Whether its kernels take x on its GPU; forward and
// gradient by x, into y; and parts of the gradient by the kernel [parts, N, C, C/G, k, k], in float32, to be added up.
bool on_tensor_cores(const at::Tensor& x, const Convolution& shape);
void convolve_channels(const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y,
                       const Convolution& shape);
at::Tensor correlate_channels(const at::Tensor& x, const at::Tensor& dy, const Convolution& shape);

}  // namespace adaconv
