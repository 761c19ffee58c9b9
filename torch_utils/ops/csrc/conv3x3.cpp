// Learned 3 × 3 convolutions on the CPU, for inference, in channels-last: Winograd's F(4 × 4, 3 × 3) (Lavin and Gray
// 2016, section 4.3), which takes 36 multiplications for 16 outputs in place of 144.
//
//   V = Bᵀ d B     of every tile d of 6 × 6 inputs, for each input channel
//   M = V · U      36 matrix products [tiles, I] · [I, O], U = G g Gᵀ being the kernels (conv3x3.py)
//   y = Aᵀ M A     the tile's 4 × 4 outputs, with bias and ReLU
//
// What lies beyond the border is looked up where it is reflected from, so no padded copy is made.

#include "simd.h"

#include <torch/library.h>

namespace {

constexpr int64_t kOut = 4, kIn = 6, kPoints = kIn * kIn;
constexpr int64_t kChunkBytes = 3 << 20;  // of V and M together, for one thread

// Bᵀ applied to six values.
template <class V>
inline void to_points(const V* d, int64_t stride, V* v) {
  const V d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  const V a = d4 - 4 * d2, b = d3 - 4 * d1, c = d4 - d2, e = 2 * (d3 - d1);
  v[0] = 4 * d0 - 5 * d2 + d4;
  v[1] = a + b;
  v[2] = a - b;
  v[3] = c + e;
  v[4] = c - e;
  v[5] = 4 * d1 - 5 * d3 + d5;
}

// Aᵀ applied to six values.
template <class V>
inline void from_points(const V* m, int64_t stride, V* y) {
  const V a = m[stride] + m[2 * stride], b = m[stride] - m[2 * stride];
  const V c = m[3 * stride] + m[4 * stride], d = m[3 * stride] - m[4 * stride];
  y[0] = m[0] + a + c;
  y[1] = b + 2 * d;
  y[2] = a + 4 * c;
  y[3] = b + 8 * d + m[5 * stride];
}

int64_t beyond(int64_t i, int64_t size, bool reflect) {
  if (i >= 0 && i < size) return i;
  if (!reflect || i > size) return -1;  // further than one pixel: only outputs that are dropped read it
  return i < 0 ? -i : 2 * (size - 1) - i;
}

// rows × (vectors · width) of C = A · B, A [rows, K], B [K, ·], C [rows, ·] with these distances from row to row.
template <int rows, int vectors>
inline void block(const float* a, int64_t a_stride, const float* b, float* c, int64_t stride, int64_t K) {
  using S = Simd<float>;
  S::Vector sum[rows][vectors] = {};
  for (int64_t k = 0; k < K; k++) {
    S::Vector with[vectors];
    for (int j = 0; j < vectors; j++) with[j] = S::load(b + k * stride + j * S::width), keep_in_register(with[j]);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sum[i][j] += a[i * a_stride + k] * with[j];
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++) S::store(c + i * stride + j * S::width, sum[i][j]);
}

// `count` rows of such a product, at most `rows` at a time.
template <int rows, int vectors>
inline void blocks(const float* a, int64_t a_stride, const float* b, float* c, int64_t stride, int64_t K,
                   int64_t count) {
  for (; count >= rows; count -= rows, a += rows * a_stride, c += rows * stride)
    block<rows, vectors>(a, a_stride, b, c, stride, K);
  if constexpr (rows > 1) {
    if (count > 0) blocks<rows / 2, vectors>(a, a_stride, b, c, stride, K, count);
  }
}

// C = A · B: as many sums in registers as there are, less those for B's row. Libraries do it as fast on the processors
// that they are tuned for; on others by half.
void multiply(const float* a, const float* b, float* c, int64_t count, int64_t K, int64_t columns) {
  constexpr int kVectors = 2, kRows = (kVectorRegisters - 2 * kVectors) / kVectors;
  constexpr int64_t width = Simd<float>::width;
  int64_t j = 0;
  for (; j + kVectors * width <= columns; j += kVectors * width)
    blocks<kRows, kVectors>(a, K, b + j, c + j, columns, K, count);
  if (j < columns) blocks<kRows, 1>(a, K, b + j, c + j, columns, K, count);
}

at::Tensor conv3x3_cpu(const at::Tensor& x_, const at::Tensor& kernel_, const std::optional<at::Tensor>& bias_,
                       int64_t outputs, bool reflect, bool relu) {
  using S = Simd<float>;
  using V = S::Vector;
  TORCH_CHECK_VALUE(x_.dim() == 4 && x_.scalar_type() == at::kFloat, "x: expected [N, I, H, W] in float32");
  const int64_t n = x_.size(0), inputs = x_.size(1), height = x_.size(2), width = x_.size(3);
  const int64_t padded = kernel_.dim() == 3 ? kernel_.size(2) : 0;  // to the widest vectors that any machine has
  TORCH_CHECK_VALUE(inputs % S::width == 0, "x: expected a multiple of ", S::width, " channels");
  TORCH_CHECK_VALUE(kernel_.sizes() == at::IntArrayRef({kPoints, inputs, padded}) && kernel_.is_contiguous() &&
                        kernel_.scalar_type() == at::kFloat && outputs >= 0 && padded >= outputs &&
                        padded % S::width == 0,
                    "kernel: expected [36, I, O rounded up] in float32");
  TORCH_CHECK_VALUE(!bias_ || (bias_->sizes() == at::IntArrayRef({outputs}) && bias_->scalar_type() == at::kFloat),
                    "bias: expected [O] in float32");
  TORCH_CHECK_VALUE(!reflect || std::min(height, width) > 1, "x: too small to be reflected");
  const at::Tensor x = x_.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor y = at::empty({n, outputs, height, width}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  if (y.numel() == 0) return y;
  const at::Tensor bias = bias_ ? bias_->contiguous() : at::Tensor();
  const float *const from = x.const_data_ptr<float>(), *const kernel = kernel_.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();

  const int64_t rows = (height + kOut - 1) / kOut, columns = (width + kOut - 1) / kOut, tiles = n * rows * columns;
  int64_t chunk = kChunkBytes / int64_t(sizeof(float)) / (kPoints * (inputs + padded));
  chunk = std::clamp<int64_t>(chunk, 16, 1024);
  chunk = std::min(chunk, (tiles + at::get_num_threads() - 1) / at::get_num_threads());
  const int64_t chunks = (tiles + chunk - 1) / chunk;

  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    // a vector between the points' matrices: they would begin in the same lines of the cache
    const int64_t v_stride = chunk * inputs + S::width, m_stride = chunk * padded + S::width;
    at::Tensor v_ = at::empty({kPoints * v_stride}, x.options()), m_ = at::empty({kPoints * m_stride}, x.options());
    float *const v = v_.mutable_data_ptr<float>(), *const m = m_.mutable_data_ptr<float>();
    Scratch<float> zeros(inputs), shift(padded);
    std::fill_n(zeros.get(), inputs, 0.f);
    std::fill_n(shift.get(), padded, 0.f);
    if (bias.defined()) std::copy_n(bias.const_data_ptr<float>(), outputs, shift.get());
    for (int64_t job = begin; job < end; job++) {
      const int64_t first = job * chunk, count = std::min(chunk, tiles - first);
      for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, sample = tile / (rows * columns), row = tile / columns % rows * kOut,
                      column = tile % columns * kOut;
        const float* pixels[kPoints];
        for (int64_t i = 0; i < kIn; i++) {
          const int64_t r = beyond(row + i - 1, height, reflect);
          for (int64_t j = 0; j < kIn; j++) {
            const int64_t c = beyond(column + j - 1, width, reflect);
            pixels[i * kIn + j] =
                r < 0 || c < 0 ? zeros.get() : from + ((sample * height + r) * width + c) * inputs;
          }
        }
        for (int64_t c = 0; c < inputs; c += S::width) {
          V d[kIn], half[kPoints];  // half[j][i]: columns done
          for (int64_t j = 0; j < kIn; j++) {
            for (int64_t i = 0; i < kIn; i++) d[i] = S::load(pixels[i * kIn + j] + c);
            to_points(d, 1, half + j * kIn);
          }
          for (int64_t i = 0; i < kIn; i++) {
            to_points(half + i, kIn, d);
            for (int64_t j = 0; j < kIn; j++) S::store(v + (i * kIn + j) * v_stride + t * inputs + c, d[j]);
          }
        }
      }
      for (int64_t point = 0; point < kPoints; point++)
        multiply(v + point * v_stride, kernel + point * inputs * padded, m + point * m_stride, count, inputs, padded);
      for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, sample = tile / (rows * columns), row = tile / columns % rows * kOut,
                      column = tile % columns * kOut;
        const int64_t high = std::min(kOut, height - row), wide = std::min(kOut, width - column);
        float* const out = to + ((sample * height + row) * width + column) * outputs;
        for (int64_t o = 0; o < outputs; o += S::width) {
          V p[kIn], half[kIn * kOut], q[kOut];
          for (int64_t j = 0; j < kIn; j++) {
            for (int64_t i = 0; i < kIn; i++) p[i] = S::load(m + (i * kIn + j) * m_stride + t * padded + o);
            from_points(p, 1, half + j * kOut);
          }
          const V b = S::load(shift.get() + o);
          const int64_t channels = std::min(S::width + int64_t(0), outputs - o);
          for (int64_t i = 0; i < high; i++) {
            from_points(half + i, kOut, q);
            for (int64_t j = 0; j < wide; j++) {
              V value = q[j] + b;
              if (relu) value = value < 0 ? V{} : value;  // NaN stays
              store_as<float>(out + (i * width + j) * outputs + o, value, channels);
            }
          }
        }
      }
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("conv3x3", &conv3x3_cpu); }
