// SIMD arithmetic: half precision in memory, vectors of one width, inner products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// -------------------------------------------------------------------------------------------------- storage types

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return from_bits(uint32_t(x.bits) << 16); }
inline float widen(float16 x) {
  const uint32_t size = x.bits & 0x7fff;
  const float finite = from_bits(size << 13) * 0x1p112f;  // the exponents' biases differ by 112; exact
  return from_bits((size < 0x7c00 ? to_bits(finite) : 0x7f800000 | size << 13) | uint32_t(x.bits & 0x8000) << 16);
}
// To the nearest, ties to even; NaN stays NaN.
inline void narrow(float x, bfloat16& y) {
  const uint32_t bits = to_bits(x);
  y.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float x, float16& y) {
  const uint32_t bits = to_bits(x) & 0x7fffffff;
  const uint32_t normal = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
  const uint32_t small = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f);  // below 2^-14: 0.5 ends at 2^-24, as float16
  const uint32_t size = bits < 113u << 23 ? small : bits < 0x477ff000 ? normal : bits > 0x7f800000 ? 0x7e00 : 0x7c00;
  y.bits = uint16_t(size | (to_bits(x) >> 16 & 0x8000));
}

template <class T> using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Return `n` entries as A: those in memory, or a copy of half precision.
template <class T, class A> A* open(T* x, int64_t n, A* scratch) {
  if constexpr (std::is_same_v<std::remove_const_t<T>, A>) return const_cast<A*>(x);
  else {
    for (int64_t i = 0; i < n; ++i) scratch[i] = widen(x[i]);
    return scratch;
  }
}
template <class T, class A> void close(T* x, const A* value, int64_t n) {
  if constexpr (!std::is_same_v<T, A>)
    for (int64_t i = 0; i < n; ++i) narrow(value[i], x[i]);
}

// ---------------------------------------------------------------------------------------------------- inner products

template <class A> constexpr int64_t LANES = 32 / sizeof(A);
template <class A> struct Vector { typedef A type __attribute__((vector_size(32))); };
template <class A> using Lanes = typename Vector<A>::type;

template <class A> inline Lanes<A> load(const A* x) {
  Lanes<A> y;
  std::memcpy(&y, x, sizeof(y));
  return y;
}
// The first n lanes, zeros instead of the others.
template <class A> inline Lanes<A> keep(Lanes<A> x, int64_t n) {
  using Int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typename Vector<Int>::type index;
  for (int64_t j = 0; j < LANES<A>; ++j) index[j] = static_cast<Int>(j);
  return index < static_cast<Int>(n) ? x : Lanes<A>{};
}
// The first n < LANES entries and zeros; `end` is where the memory that may be read ends.
template <class A> inline Lanes<A> load_part(const A* x, int64_t n, const A* end) {
  if (x + LANES<A> <= end) return keep<A>(load(x), n);
  Lanes<A> y{};
  for (int64_t j = 0; j < n; ++j) y[j] = x[j];
  return y;
}
inline double total(Lanes<float> x) {
  typedef float Half __attribute__((vector_size(16)));
  Half a, b;
  std::memcpy(&a, &x, 16);
  std::memcpy(&b, reinterpret_cast<const char*>(&x) + 16, 16);
  a += b;
  return static_cast<double>((a[0] + a[2]) + (a[1] + a[3]));
}
inline double total(Lanes<double> x) { return (x[0] + x[2]) + (x[1] + x[3]); }

// All lanes or the first n.
template <bool ALL, class A> inline Lanes<A> get(const A* x, int64_t n, const A* end) {
  return ALL ? load(x) : load_part(x, n, end);
}
template <bool ALL, class A> inline void put(A* x, Lanes<A> y, int64_t n) {
  if (ALL) std::memcpy(x, &y, sizeof(y));
  else
    for (int64_t j = 0; j < n; ++j) x[j] = y[j];
}
template <class V> inline V root(V x) {
  V y;
  for (size_t j = 0; j < sizeof(x) / sizeof(x[0]); ++j) y[j] = std::sqrt(x[j]);
  return y;
}

constexpr int64_t FLOAT_RUN = 256;  // entries summed in float before they are added in double

// The three inner products of a row and its gradient.
template <class A>
void products(const A* w, const A* g, A grad_factor, int64_t n, const A* w_end, const A* g_end, double* wg, double* ww,
              double* gg) {
  constexpr int64_t L = LANES<A>;
  double sum_wg = 0, sum_ww = 0, sum_gg = 0;
  for (int64_t i = 0; i < n;) {
    const int64_t stop = std::min(n, i + FLOAT_RUN);
    Lanes<A> wg0{}, ww0{}, gg0{}, wg1{}, ww1{}, gg1{};
    for (; i + 2 * L <= stop; i += 2 * L) {
      const Lanes<A> x0 = load(w + i), y0 = load(g + i) * grad_factor;
      const Lanes<A> x1 = load(w + i + L), y1 = load(g + i + L) * grad_factor;
      wg0 += x0 * y0, ww0 += x0 * x0, gg0 += y0 * y0;
      wg1 += x1 * y1, ww1 += x1 * x1, gg1 += y1 * y1;
    }
    if (i + L <= stop) {
      const Lanes<A> x = load(w + i), y = load(g + i) * grad_factor;
      wg0 += x * y, ww0 += x * x, gg0 += y * y;
      i += L;
    }
    if (i < stop) {
      const Lanes<A> x = load_part(w + i, stop - i, w_end), y = load_part(g + i, stop - i, g_end) * grad_factor;
      wg1 += x * y, ww1 += x * x, gg1 += y * y;
    }
    i = stop;
    sum_wg += total(wg0 + wg1), sum_ww += total(ww0 + ww1), sum_gg += total(gg0 + gg1);
  }
  *wg = sum_wg, *ww = sum_ww, *gg = sum_gg;
}

inline double sum(const double* x, int64_t n) {
  double sums[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int64_t j = 0; j < 4; ++j) sums[j] += x[i + j];
  for (; i < n; ++i) sums[0] += x[i];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

}  // namespace
