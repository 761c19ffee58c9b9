// Vectors of the machine's width, for the CPU kernels.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
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
  static Vector last_of_first(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return width - 1 + j; });
  }
  static Vector first_of_last(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return 1 + j; });
  }
  // The same at an image's border, beyond which there are zeros, or the image reflected.
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
  // Value by value, one of a and one of b: what comes first of this, and what comes second.
  static Vector interleaved_first(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return j / 2 + j % 2 * width; });
  }
  static Vector interleaved_second(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return width / 2 + j / 2 + j % 2 * width; });
  }
  // Of two vectors, every second value: from the first on, and from the second on.
  static Vector even_values(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return 2 * j; });
  }
  static Vector odd_values(Vector a, Vector b) {
    return pick(a, b, Lanes{}, [](int j) { return 2 * j + 1; });
  }
  // Of groups of so many lanes, lane j of each in all lanes of its group.
  template <int group, int lane>
  static Vector lane_of_group(Vector v) {
    return pick(v, v, Lanes{}, [](int j) { return j / group * group + lane; });
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

// A vector of float32 from that many values in half precision.
inline Simd<float>::Vector widen(const c10::BFloat16* p) {
  typedef uint16_t Values __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  Values values;
  std::memcpy(&values, p, sizeof values);
  return reinterpret_cast<Simd<float>::Vector>(__builtin_convertvector(values, Bits) << 16);
}

inline Simd<float>::Vector widen(const c10::Half* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Simd<float>::Vector>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__) && defined(__F16C__)
  return reinterpret_cast<Simd<float>::Vector>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  Simd<float>::Vector v;
  for (int j = 0; j < Simd<float>::width; j++) v[j] = static_cast<float>(p[j]);
  return v;
#endif
}

// And back, rounded to the nearest, ties to even. (AVX-512's own instruction takes subnormal numbers as 0.)
inline void narrow(Simd<float>::Vector v, c10::BFloat16* p) {
#if defined(__AVX512BF16__)
  const __m256bh values = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
#else
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Bits bits = reinterpret_cast<Bits>(v), rounded = bits + (0x7fff + (bits >> 16 & 1));
  const Bits upper = (v == v ? rounded : bits | 0x400000) >> 16;  // NaN stays NaN
#if defined(__AVX512F__)
  const __m256i values = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(upper));
#else
  typedef uint16_t Values __attribute__((vector_size(kVectorBytes / 2)));
  const Values values = __builtin_convertvector(upper, Values);
#endif
#endif
  std::memcpy(p, &values, sizeof values);
}

inline void narrow(Simd<float>::Vector v, c10::Half* p) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int j = 0; j < Simd<float>::width; j++) p[j] = static_cast<c10::Half>(v[j]);
#endif
}

// `count` values of any floating type as one vector, zeros behind them; and back.
template <class A, class S>
typename Simd<A>::Vector load_as(const S* p) {
  if constexpr (std::is_same_v<A, S>) {
    return Simd<A>::load(p);
  } else {
    return widen(p);
  }
}

// Not inlined: within larger functions the rare case would cost the common one its registers.
template <class A, class S>
[[gnu::noinline]] typename Simd<A>::Vector load_some(const S* p, int64_t count) {
  S values[Simd<A>::width] = {};
  for (int64_t j = 0; j < count; j++) values[j] = p[j];
  return load_as<A>(values);
}

template <class A, class S>
typename Simd<A>::Vector load_as(const S* p, int64_t count) {
  return count >= Simd<A>::width ? load_as<A>(p) : load_some<A>(p, count);
}

template <class A, class S>
void store_as(S* p, typename Simd<A>::Vector v) {
  if constexpr (std::is_same_v<A, S>) {
    Simd<A>::store(p, v);
  } else {
    narrow(v, p);
  }
}

template <class A, class S>
[[gnu::noinline]] void store_some(S* p, typename Simd<A>::Vector v, int64_t count) {
  S values[Simd<A>::width];
  store_as<A>(values, v);
  for (int64_t j = 0; j < count; j++) p[j] = values[j];
}

template <class A, class S>
void store_as(S* p, typename Simd<A>::Vector v, int64_t count) {
  count >= Simd<A>::width ? store_as<A>(p, v) : store_some<A>(p, v, count);
}
