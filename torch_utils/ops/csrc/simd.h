// What the CPU kernels share: vectors of the machine's width and aligned scratch memory.
#pragma once

#include "common.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

template <class A>
struct Simd {
  typedef A Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int width = kVectorBytes / sizeof(A);

  static Vector load(const A* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(A* p, Vector v) { std::memcpy(p, &v, sizeof v); }
  // The vector that begins one value before b, and the one that begins one behind the start of a.
  static Vector last_of_first(Vector a, Vector b) { return pick(a, b, Lanes{}, [](int j) { return width - 1 + j; }); }
  static Vector first_of_last(Vector a, Vector b) { return pick(a, b, Lanes{}, [](int j) { return 1 + j; }); }
  // The same at a picture's border, beyond which there are zeros, or the picture reflected.
  static Vector left_of_border(Vector v, bool reflect) {
    return reflect ? pick(v, v, Lanes{}, [](int j) { return j == 0 ? 1 : j - 1; }) : last_of_first(Vector{}, v);
  }
  static Vector right_of_border(Vector v, bool reflect) {
    return reflect ? pick(v, v, Lanes{}, [](int j) { return j == width - 1 ? width - 2 : j + 1; })
                   : first_of_last(v, Vector{});
  }
  // Of two vectors cut into pieces: the first's even pieces joined with the second's, and the odd ones.
  template <int piece>
  static Vector even_pieces(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return j & piece ? width + j - piece : j; });
  }
  template <int piece>
  static Vector odd_pieces(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return j & piece ? width + j : j + piece; });
  }
  static A sum(Vector v) {
    A total = 0;
    for (int64_t j = 0; j < width; j++) total += v[j];
    return total;
  }

 private:
  using Lanes = std::make_integer_sequence<int, width>;
  template <int... j, class Index>
  static Vector pick(Vector a, Vector b, std::integer_sequence<int, j...>, Index index) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, index(j)...);
#else
    typedef std::conditional_t<sizeof(A) == 8, int64_t, int32_t> Indices __attribute__((vector_size(kVectorBytes)));
    return __builtin_shuffle(a, b, Indices{index(j)...});
#endif
  }
};

// Keeps a vector that was loaded in a register, where the compiler would read memory again at each use.
template <class Vector>
inline void keep_in_register(Vector& v) {
#if defined(__x86_64__) && defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// `count` values of any floating type as one vector, zeros behind them; and back.
template <class A, class S>
typename Simd<A>::Vector load_as(const S* p, int64_t count = Simd<A>::width) {
  constexpr int64_t width = Simd<A>::width;
  if constexpr (std::is_same_v<A, S>) {
    if (count == width) return Simd<A>::load(p);
  }
  A values[width] = {};
  if (count == width) {
    for (int64_t k = 0; k < width; k++) values[k] = static_cast<A>(p[k]);
  } else {
    for (int64_t k = 0; k < count; k++) values[k] = static_cast<A>(p[k]);
  }
  return Simd<A>::load(values);
}

template <class A, class S>
void store_as(S* p, typename Simd<A>::Vector v, int64_t count = Simd<A>::width) {
  constexpr int64_t width = Simd<A>::width;
  if constexpr (std::is_same_v<A, S>) {
    if (count == width) return Simd<A>::store(p, v);
  }
  A values[width];
  Simd<A>::store(values, v);
  if (count == width) {
    for (int64_t k = 0; k < width; k++) p[k] = static_cast<S>(values[k]);
  } else {
    for (int64_t k = 0; k < count; k++) p[k] = static_cast<S>(values[k]);
  }
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Uninitialized memory, aligned to a cache line, for one thread's use.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    void* memory = std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * sizeof(A), 64));
    TORCH_CHECK(memory != nullptr, "out of memory for ", count, " values of scratch");
    data_.reset(static_cast<A*>(memory));
  }
  A* get() const { return data_.get(); }

 private:
  std::unique_ptr<A[], decltype(&std::free)> data_{nullptr, &std::free};
};

// An uninitialized contiguous tensor. Large ones ask for huge pages: fresh memory costs a fault for each page, which
// takes longer than most of the arithmetic here.
inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor t = at::empty(sizes, options.memory_format(at::MemoryFormat::Contiguous));
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
  if constexpr (std::is_same_v<From, To> && std::is_same_v<To, Accumulate<To>>) {
    if (stride == 1) {  // most rows are short: a call of memcpy would take as long as the copy
      int64_t j = 0;
      for (; j + Simd<To>::width <= count; j += Simd<To>::width) Simd<To>::store(to + j, Simd<To>::load(from + j));
      for (; j < count; j++) to[j] = from[j];
      return;
    }
  }
  if (stride == 1) {
    for (int64_t j = 0; j < count; j++) to[j] = static_cast<To>(from[j]);
  } else {
    for (int64_t j = 0; j < count; j++) to[j] = static_cast<To>(from[j * stride]);
  }
}

// Turns a square of vectors: value j of vector i goes to value i of vector j.
template <class A, int half = Simd<A>::width / 2>
void turn(typename Simd<A>::Vector* v) {
  for (int i = 0; i < Simd<A>::width; i++) {
    if (i & half) continue;
    const typename Simd<A>::Vector a = v[i], b = v[i + half];
    v[i] = Simd<A>::template even_pieces<half>(a, b);
    v[i + half] = Simd<A>::template odd_pieces<half>(a, b);
  }
  if constexpr (half > 1) turn<A, half / 2>(v);
}

// Pixels of a few channels, from channels-last to planes.
template <class A>
void part_channels(const A* from, int64_t channels, int64_t count, int64_t pixels, A* to) {
  constexpr int64_t width = Simd<A>::width;
  int64_t p = 0;
  for (; count == width && p + width <= pixels; p += width) {
    typename Simd<A>::Vector square[width];
    for (int j = 0; j < width; j++) square[j] = Simd<A>::load(from + (p + j) * channels);
    turn<A>(square);
    for (int j = 0; j < width; j++) Simd<A>::store(to + j * pixels + p, square[j]);
  }
  for (; p < pixels; p++)
    for (int64_t c = 0; c < count; c++) to[c * pixels + p] = from[p * channels + c];
}

// x [N, C, H, W] plane by plane, as these kernels read it. oneDNN leaves transposed convolutions in channels-last, and
// PyTorch's own conversion takes as long as such a convolution.
inline at::Tensor planes(const at::Tensor& x) {
  const bool full = x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
  if (x.is_contiguous() || !x.is_contiguous(at::MemoryFormat::ChannelsLast) || !full) return x.contiguous();
  at::Tensor out = empty_output(x.sizes(), x.options());
  const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "planes", [&] {
    constexpr int64_t width = Simd<scalar_t>::width;
    const int64_t blocks = (channels + width - 1) / width;
    at::parallel_for(0, x.size(0) * blocks, 1 + (1 << 11) / pixels, [&](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; job++) {
        const int64_t n = job / blocks, c = job % blocks * width;
        part_channels(x.const_data_ptr<scalar_t>() + n * pixels * channels + c, channels,
                      std::min(width, channels - c), pixels,
                      out.mutable_data_ptr<scalar_t>() + (n * channels + c) * pixels);
      }
    });
  });
  return out;
}
