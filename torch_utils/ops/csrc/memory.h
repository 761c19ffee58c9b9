// Memory of the CPU kernels: scratch, results, and from one order of pixels and channels to another.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>

#include "common.h"
#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Uninitialized memory, aligned to a cache line, for one thread's use.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    void* memory = std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * sizeof(A), 64));
    TORCH_CHECK(memory != nullptr, "out of memory for " + std::to_string(count) + " values of scratch");
    data_.reset(static_cast<A*>(memory));
  }
  A* get() const { return data_.get(); }

 private:
  std::unique_ptr<A[], decltype(&std::free)> data_{nullptr, &std::free};
};

// An uninitialized tensor. Large ones ask for huge pages: fresh memory costs a fault for each page, which takes longer
// than most of the arithmetic here.
inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                               at::MemoryFormat order = at::MemoryFormat::Contiguous) {
  at::Tensor t = at::empty(sizes, options.memory_format(order));
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(t.data_ptr()), page);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(t.data_ptr()) + t.nbytes()) / page * page;
  if (end > begin + page) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return t;
}

// Copies `count` values that lie `stride` apart, converted.
template <class From, class To>
void copy_row(const From* from, int64_t stride, To* to, int64_t count) {
  using A = std::conditional_t<std::is_same_v<From, double> || std::is_same_v<To, double>, double, float>;
  if (stride == 1) {  // most rows are short: a call of memcpy would take as long as the copy
    int64_t j = 0;
    for (; j + Simd<A>::width <= count; j += Simd<A>::width) store_as<A>(to + j, load_as<A>(from + j));
    for (; j < count; j++) to[j] = static_cast<To>(from[j]);
  } else {
    for (int64_t j = 0; j < count; j++) to[j] = static_cast<To>(from[j * stride]);
  }
}

// Transposes a square of vectors: value j of vector i goes to value i of vector j.
template <class A, int half = Simd<A>::width / 2>
void transpose(typename Simd<A>::Vector* v) {
#pragma GCC unroll 16
  for (int i = 0; i < Simd<A>::width; i++) {
    if (i & half) continue;
    const typename Simd<A>::Vector a = v[i], b = v[i + half];
    v[i] = Simd<A>::template even_pieces<half>(a, b);
    v[i + half] = Simd<A>::template odd_pieces<half>(a, b);
  }
  if constexpr (half > 1) transpose<A, half / 2>(v);
}

// Transposes a matrix, [rows, columns] → [columns, rows], converted; rows lie `from_stride` and `to_stride` apart. From
// channels-last memory (pixels × channels) to planes (channels × pixels), and back.
template <class A, class From, class To>
void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns, To* to, int64_t to_stride) {
  constexpr int64_t width = Simd<A>::width;
  typename Simd<A>::Vector square[width];
  for (int64_t r = 0; r < rows; r += width)
    for (int64_t c = 0; c < columns; c += width) {
      const From* in = from + r * from_stride + c;
      To* out = to + c * to_stride + r;
      const int64_t high = std::min(width, rows - r), wide = std::min(width, columns - c);
      if (high == width && wide == width) {
#pragma GCC unroll 16
        for (int j = 0; j < width; j++) square[j] = load_as<A>(in + j * from_stride);
        transpose<A>(square);
#pragma GCC unroll 16
        for (int j = 0; j < width; j++) store_as<A>(out + j * to_stride, square[j]);
      } else {
        for (int64_t j = 0; j < high; j++)
          for (int64_t k = 0; k < wide; k++) out[k * to_stride + j] = static_cast<To>(in[j * from_stride + k]);
      }
    }
}
