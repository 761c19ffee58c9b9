// Learned 3 × 3 convolutions on the CPU, in channels-last: Winograd's F(4 × 4, 3 × 3) (Lavin and Gray 2016, section
// 4.3), which takes 36 multiplications for 16 outputs in place of 144.
//
//   V = Bᵀ d B     of every tile d of 6 × 6 inputs, for each input channel
//   M = V · U      36 matrix products [tiles, I] · [I, O], U = G g Gᵀ being the kernels
//   y = Aᵀ M A     the tile's 4 × 4 outputs, with bias and ReLU
//
// The gradient by the kernel is the same bilinear form, read from its other end:
//
//   Y = A dy Aᵀ    of every tile of 4 × 4 gradients
//   W = Vᵀ · Y     36 matrix products [I, tiles] · [tiles, O], summed over all tiles
//   dg = Gᵀ W G
//
// In inference, what lies beyond the border is looked up where it is reflected from, so that no padded copy is made.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "common.h"
#include "memory.h"
#include "simd.h"

namespace {

using Lanes = Simd<float>;
using Vector = Lanes::Vector;

constexpr int64_t kOut = 4, kIn = 6, kPoints = kIn * kIn;
constexpr int64_t kChunkBytes = 3 << 20;  // of V and M together, for one thread

// The points are 0, ±a, ±1/a and ∞ with a = √½. For the usual 0, ±1, ±2 and ∞ the errors of rounding are twice as large
// on average, and up to four times.
constexpr float kA = 0.70710678f, kB = 1.41421356f;  // b = 1/a: a² = ½, b² = 2

// Bᵀ applied to six values.
template <class V>
inline void to_points(const V* d, int64_t stride, V* v) {
  const V d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  const V a = d4 - 2 * d2, b = kA * (d3 - 2 * d1), c = d4 - d2 / 2, e = kB * (d3 - d1 / 2);
  v[0] = d0 - 2.5f * d2 + d4;
  v[1] = a + b;
  v[2] = a - b;
  v[3] = c + e;
  v[4] = c - e;
  v[5] = d1 - 2.5f * d3 + d5;
}

// Aᵀ applied to six values.
template <class V>
inline void from_points(const V* m, int64_t stride, V* y) {
  const V a = m[stride] + m[2 * stride], b = kA * (m[stride] - m[2 * stride]);
  const V c = m[3 * stride] + m[4 * stride], d = kB * (m[3 * stride] - m[4 * stride]);
  y[0] = m[0] + a + c;
  y[1] = b + d;
  y[2] = a / 2 + 2 * c;
  y[3] = b / 2 + 2 * d + m[5 * stride];
}

// A applied to four values.
template <class V>
inline void to_sums(const V* y, int64_t stride, V* m) {
  const V a = y[0] + y[2 * stride] / 2, b = kA * (y[stride] + y[3 * stride] / 2);
  const V c = y[0] + 2 * y[2 * stride], d = kB * (y[stride] + 2 * y[3 * stride]);
  m[0] = y[0];
  m[1] = a + b;
  m[2] = a - b;
  m[3] = c + d;
  m[4] = c - d;
  m[5] = y[3 * stride];
}

// Where pixel i is read from; -1: nowhere, it is zero.
int64_t beyond(int64_t i, int64_t size, bool reflect) {
  if (i >= 0 && i < size) return i;
  if (!reflect || i > size) return -1;  // further than one pixel: only outputs that are dropped read it
  return i < 0 ? -i : 2 * (size - 1) - i;
}

// The first factor of a matrix product: rows of K values, with the distances from row to row and from value to value.
struct Rows {
  const float* from;
  int64_t row, value;
};

// C = A · B, or with `add` C += A · B: rows × (vectors · width) of C [rows, ·], with B [K, ·], both with the distance
// `stride` from row to row.
template <int rows, int vectors, bool add>
inline void block(const Rows& a, const float* b, float* c, int64_t stride, int64_t K) {
  Vector sum[rows][vectors] = {};
  if (add)
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sum[i][j] = Lanes::load(c + i * stride + j * Lanes::width);
  for (int64_t k = 0; k < K; k++) {
    Vector with[vectors];
    for (int j = 0; j < vectors; j++) {
      with[j] = Lanes::load(b + k * stride + j * Lanes::width);
      keep_in_register(with[j]);
    }
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sum[i][j] += a.from[i * a.row + k * a.value] * with[j];
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++) Lanes::store(c + i * stride + j * Lanes::width, sum[i][j]);
}

// `count` rows of such a product, at most `rows` at a time.
template <int rows, int vectors, bool add>
inline void blocks(Rows a, const float* b, float* c, int64_t stride, int64_t K, int64_t count) {
  for (; count >= rows; count -= rows, a.from += rows * a.row, c += rows * stride)
    block<rows, vectors, add>(a, b, c, stride, K);
  if constexpr (rows > 1) {
    if (count > 0) blocks<rows / 2, vectors, add>(a, b, c, stride, K, count);
  }
}

// The same for all of C [count, columns], with as many sums in registers as there are, less those for a row of B.
// Libraries are as fast on the processors that they are tuned for, and half as fast on others.
template <bool add>
void multiply(const Rows& a, const float* b, float* c, int64_t stride, int64_t count, int64_t K, int64_t columns) {
  constexpr int kVectors = 2, kRows = (kVectorRegisters - 2 * kVectors) / kVectors;
  constexpr int64_t width = Lanes::width;
  int64_t j = 0;
  for (; j + kVectors * width <= columns; j += kVectors * width)
    blocks<kRows, kVectors, add>(a, b + j, c + j, stride, K, count);
  if (j < columns) blocks<kRows, 1, add>(a, b + j, c + j, stride, K, count);
}

// The sizes of a convolution, and its tiles of 4 × 4 outputs: `chunk` of them are transformed and multiplied at a time.
struct Plan {
  int64_t inputs, in_height, in_width, outputs, height, width;
  int64_t border;  // pixels around x, zeros or x reflected
  int64_t padded;  // outputs, rounded up to the widest vectors of any machine
  int64_t rows, columns, tiles, chunk;
  int64_t v_stride, m_stride;  // from the matrix of one point to that of the next
  bool reflect = false, relu = false;

  Plan(const at::Tensor& x, int64_t outputs, int64_t padded, int64_t border)
      : inputs(x.size(1)), in_height(x.size(2)), in_width(x.size(3)), outputs(outputs), border(border), padded(padded) {
    height = in_height + 2 * border - 2, width = in_width + 2 * border - 2;
    rows = (height + kOut - 1) / kOut, columns = (width + kOut - 1) / kOut, tiles = x.size(0) * rows * columns;
    chunk = kChunkBytes / int64_t(sizeof(float)) / (kPoints * (inputs + padded));
    chunk = std::clamp<int64_t>(chunk, 16, 1024);
    chunk = std::min(chunk, (tiles + at::get_num_threads() - 1) / at::get_num_threads());
    // a vector between the points' matrices: they would begin in the same lines of the cache
    v_stride = chunk * inputs + Lanes::width, m_stride = chunk * padded + Lanes::width;
  }
};

// A tile's sample, and the first row and column of its outputs.
struct Tile {
  int64_t sample, row, column;
  Tile(const Plan& plan, int64_t index)
      : sample(index / (plan.rows * plan.columns)),
        row(index / plan.columns % plan.rows * kOut),
        column(index % plan.columns * kOut) {}
};

// V = Bᵀ d B of a tile. `zeros` stands for a pixel beyond the border.
void transform_input(const Plan& plan, const Tile& tile, const float* x, const float* zeros, float* v) {
  const float* pixels[kPoints];
  for (int64_t i = 0; i < kIn; i++) {
    const int64_t r = beyond(tile.row + i - plan.border, plan.in_height, plan.reflect);
    for (int64_t j = 0; j < kIn; j++) {
      const int64_t c = beyond(tile.column + j - plan.border, plan.in_width, plan.reflect);
      const int64_t pixel = (tile.sample * plan.in_height + r) * plan.in_width + c;
      pixels[i * kIn + j] = r < 0 || c < 0 ? zeros : x + pixel * plan.inputs;
    }
  }
  for (int64_t c = 0; c < plan.inputs; c += Lanes::width) {
    Vector d[kIn], half[kPoints];  // half[j][i]: columns done
    for (int64_t j = 0; j < kIn; j++) {
      for (int64_t i = 0; i < kIn; i++) d[i] = Lanes::load(pixels[i * kIn + j] + c);
      to_points(d, 1, half + j * kIn);
    }
    for (int64_t i = 0; i < kIn; i++) {
      to_points(half + i, kIn, d);
      for (int64_t j = 0; j < kIn; j++) Lanes::store(v + (i * kIn + j) * plan.v_stride + c, d[j]);
    }
  }
}

// y = Aᵀ M A of a tile, with bias and ReLU.
void transform_output(const Plan& plan, const Tile& tile, const float* m, const float* bias, float* y) {
  const int64_t high = std::min(kOut, plan.height - tile.row), wide = std::min(kOut, plan.width - tile.column);
  float* const out = y + ((tile.sample * plan.height + tile.row) * plan.width + tile.column) * plan.outputs;
  for (int64_t o = 0; o < plan.outputs; o += Lanes::width) {
    Vector p[kIn], half[kIn * kOut], q[kOut];
    for (int64_t j = 0; j < kIn; j++) {
      for (int64_t i = 0; i < kIn; i++) p[i] = Lanes::load(m + (i * kIn + j) * plan.m_stride + o);
      from_points(p, 1, half + j * kOut);
    }
    const Vector b = Lanes::load(bias + o);
    const int64_t channels = std::min<int64_t>(Lanes::width, plan.outputs - o);
    for (int64_t i = 0; i < high; i++) {
      from_points(half + i, kOut, q);
      for (int64_t j = 0; j < wide; j++) {
        Vector value = q[j] + b;
        if (plan.relu) value = value < 0 ? Vector{} : value;  // NaN stays
        store_as<float>(out + (i * plan.width + j) * plan.outputs + o, value, channels);
      }
    }
  }
}

// Y = A dy Aᵀ of a tile.
void transform_gradient(const Plan& plan, const Tile& tile, const float* dy, float* y) {
  const int64_t high = std::min(kOut, plan.height - tile.row), wide = std::min(kOut, plan.width - tile.column);
  const float* const from = dy + ((tile.sample * plan.height + tile.row) * plan.width + tile.column) * plan.outputs;
  for (int64_t o = 0; o < plan.outputs; o += Lanes::width) {
    Vector d[kOut] = {}, half[kIn * kOut] = {}, m[kIn];  // half[i][x]: the rows' sums at point x, done
    for (int64_t i = 0; i < high; i++) {
      for (int64_t j = 0; j < wide; j++) d[j] = Lanes::load(from + (i * plan.width + j) * plan.outputs + o);
      to_sums(d, 1, half + i * kIn);
    }
    for (int64_t x = 0; x < kIn; x++) {
      to_sums(half + x, kIn, m);
      for (int64_t i = 0; i < kIn; i++) Lanes::store(y + (i * kIn + x) * plan.m_stride + o, m[i]);
    }
  }
}

// Chunks [begin, end) of the tiles, in one thread.
void convolve(const Plan& plan, const float* x, const float* kernel, const at::Tensor& bias, float* y, int64_t begin,
              int64_t end) {
  const auto options = at::TensorOptions().dtype(at::kFloat);
  at::Tensor v_ = at::empty({kPoints * plan.v_stride}, options), m_ = at::empty({kPoints * plan.m_stride}, options);
  float *const v = v_.mutable_data_ptr<float>(), *const m = m_.mutable_data_ptr<float>();
  Scratch<float> zeros(plan.inputs), shift(plan.padded);
  std::fill_n(zeros.get(), plan.inputs, 0.f);
  std::fill_n(shift.get(), plan.padded, 0.f);
  if (bias.defined()) std::copy_n(bias.const_data_ptr<float>(), plan.outputs, shift.get());
  for (int64_t job = begin; job < end; job++) {
    const int64_t first = job * plan.chunk, count = std::min(plan.chunk, plan.tiles - first);
    for (int64_t t = 0; t < count; t++)
      transform_input(plan, Tile(plan, first + t), x, zeros.get(), v + t * plan.inputs);
    for (int64_t point = 0; point < kPoints; point++)
      multiply<false>({v + point * plan.v_stride, plan.inputs, 1}, kernel + point * plan.inputs * plan.padded,
                      m + point * plan.m_stride, plan.padded, count, plan.inputs, plan.padded);
    for (int64_t t = 0; t < count; t++)
      transform_output(plan, Tile(plan, first + t), m + t * plan.padded, shift.get(), y);
  }
}

// W += Vᵀ · Y for all tiles. All threads share a chunk: first its tiles, then the points. So sums are in the same order
// for any number of threads.
void add_products(const Plan& plan, const float* x, const float* dy, float* w) {
  Scratch<float> v(kPoints * plan.v_stride), y(kPoints * plan.m_stride), zeros(plan.inputs);
  std::fill_n(zeros.get(), plan.inputs, 0.f);
  for (int64_t first = 0; first < plan.tiles; first += plan.chunk) {
    const int64_t count = std::min(plan.chunk, plan.tiles - first);
    at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const Tile tile(plan, first + t);
        transform_input(plan, tile, x, zeros.get(), v.get() + t * plan.inputs);
        transform_gradient(plan, tile, dy, y.get() + t * plan.outputs);
      }
    });
    at::parallel_for(0, kPoints, 1, [&](int64_t begin, int64_t end) {
      for (int64_t point = begin; point < end; point++)
        multiply<true>({v.get() + point * plan.v_stride, 1, plan.inputs}, y.get() + point * plan.m_stride,
                       w + point * plan.inputs * plan.outputs, plan.outputs, plan.inputs, count, plan.outputs);
    });
  }
}

// What each of the 9 values of a kernel adds to each of its 36 points: G ⊗ G [36, 9].
struct Points {
  float values[kPoints * 9];

  Points() {
    const double a = std::sqrt(0.5), b = std::sqrt(2.);
    const double g[kIn][3] = {{1, 0, 0},
                              {-2 / 3., -2 / 3. * a, -1 / 3.},
                              {-2 / 3., 2 / 3. * a, -1 / 3.},
                              {1 / 6., b / 6, 1 / 3.},
                              {1 / 6., -b / 6, 1 / 3.},
                              {0, 0, 1}};
    for (int64_t point = 0; point < kPoints; point++)
      for (int64_t value = 0; value < 9; value++)
        values[point * 9 + value] = static_cast<float>(g[point / kIn][value / 3] * g[point % kIn][value % 3]);
  }
};

// A · B, A [rows, K] and B [K, ·], whose columns are whole vectors.
at::Tensor product(const Rows& a, int64_t rows, const at::Tensor& b_) {
  const at::Tensor b = b_.contiguous();
  at::Tensor c = at::empty({rows, b.size(1)}, b.options());
  const float* from = b.const_data_ptr<float>();
  float* to = c.mutable_data_ptr<float>();
  at::parallel_for(0, b.size(1) / Lanes::width, 256, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * Lanes::width, columns = (end - begin) * Lanes::width;
    multiply<false>(a, from + first, to + first, b.size(1), rows, b.size(0), columns);
  });
  return c;
}

void check(const at::Tensor& x, const at::Tensor& kernel, const std::optional<at::Tensor>& bias, int64_t outputs,
           bool reflect) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.scalar_type() == at::kFloat, "x: expected [N, I, H, W] in float32");
  const int64_t inputs = x.size(1), padded = kernel.dim() == 3 ? kernel.size(2) : 0;
  TORCH_CHECK_VALUE(inputs > 0 && inputs % Lanes::width == 0,
                    "x: expected a multiple of " + std::to_string(Lanes::width) + " channels");
  TORCH_CHECK_VALUE(kernel.sizes() == at::IntArrayRef({kPoints, inputs, padded}) && kernel.is_contiguous() &&
                        kernel.scalar_type() == at::kFloat && outputs >= 0 && padded >= outputs &&
                        padded % Lanes::width == 0,
                    "kernel: expected [36, I, O rounded up] in float32");
  TORCH_CHECK_VALUE(!bias || (bias->sizes() == at::IntArrayRef({outputs}) && bias->scalar_type() == at::kFloat),
                    "bias: expected [O] in float32");
  TORCH_CHECK_VALUE(!reflect || std::min(x.size(2), x.size(3)) > 1, "x: too small to be reflected");
}

void run(const Plan& plan, const at::Tensor& x, const at::Tensor& kernel, const at::Tensor& bias, at::Tensor& y) {
  const float *from = x.const_data_ptr<float>(), *u = kernel.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, (plan.tiles + plan.chunk - 1) / plan.chunk, 1,
                   [&](int64_t begin, int64_t end) { convolve(plan, from, u, bias, to, begin, end); });
}

at::Tensor conv3x3_cpu(const at::Tensor& x_, const at::Tensor& kernel, const std::optional<at::Tensor>& bias_,
                       int64_t outputs, bool reflect, bool relu) {
  check(x_, kernel, bias_, outputs, reflect);
  const at::Tensor x = x_.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor y =
      at::empty({x.size(0), outputs, x.size(2), x.size(3)}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (y.numel() == 0) return y;
  const at::Tensor bias = bias_ ? bias_->contiguous() : at::Tensor();
  Plan plan(x, outputs, kernel.size(2), 1);
  plan.reflect = reflect, plan.relu = relu;
  run(plan, x, kernel, bias, y);
  return y;
}

void check_learned(const at::Tensor& x, int64_t outputs, int64_t border) {
  TORCH_CHECK_VALUE(x.dim() == 4 && x.scalar_type() == at::kFloat, "x: expected [N, I, H, W] in float32");
  TORCH_CHECK_VALUE(x.size(1) > 0 && outputs > 0 && x.size(1) % Lanes::width == 0 && outputs % Lanes::width == 0,
                    "expected multiples of " + std::to_string(Lanes::width) + " channels");
  TORCH_CHECK_VALUE(border >= 0 && border <= 2 && std::min(x.size(2), x.size(3)) + 2 * border > 2,
                    "padding: expected 0 to 2, and an image that is not smaller than the kernel");
}

at::Tensor winograd_cpu(const at::Tensor& x_, const at::Tensor& weight, int64_t border) {
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.sizes() == at::IntArrayRef({weight.size(0), x_.size(1), 3, 3}) &&
                        weight.scalar_type() == at::kFloat,
                    "weight: expected [O, I, 3, 3] in float32");
  const int64_t outputs = weight.size(0);
  check_learned(x_, outputs, border);
  const at::Tensor x = x_.contiguous(at::MemoryFormat::ChannelsLast);
  const Plan plan(x, outputs, outputs, border);
  at::Tensor y =
      empty_output({x.size(0), outputs, plan.height, plan.width}, x.options(), at::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  const at::Tensor values = weight.permute({2, 3, 1, 0}).reshape({9, -1});
  run(plan, x, product({Points().values, 9, 1}, kPoints, values), {}, y);
  return y;
}

at::Tensor winograd_grad_weight_cpu(const at::Tensor& x_, const at::Tensor& dy_, int64_t border) {
  check_learned(x_, dy_.size(1), border);
  const at::Tensor x = x_.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor dy = dy_.contiguous(at::MemoryFormat::ChannelsLast);
  const Plan plan(x, dy.size(1), dy.size(1), border);
  TORCH_CHECK_VALUE(dy.sizes() == at::IntArrayRef({x.size(0), plan.outputs, plan.height, plan.width}) &&
                        dy.scalar_type() == at::kFloat,
                    "dy: expected the gradient of what x becomes");
  at::Tensor w = at::zeros({kPoints, plan.inputs * plan.outputs}, x.options());
  if (plan.tiles > 0)
    add_products(plan, x.const_data_ptr<float>(), dy.const_data_ptr<float>(), w.mutable_data_ptr<float>());
  const at::Tensor values = product({Points().values, 1, 9}, 9, w).view({3, 3, plan.inputs, plan.outputs});
  return values.permute({3, 2, 0, 1}).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) {
  m.impl("conv3x3", &conv3x3_cpu);
  m.impl("winograd", &winograd_cpu);
  m.impl("winograd_grad_weight", &winograd_grad_weight_cpu);
}
