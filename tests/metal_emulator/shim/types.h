// Metal's types on a host compiler: qualifiers, scalars, bfloat, vectors, limits.
// <cmath> must not be included: ::exp and friends would make `using namespace metal` ambiguous.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#define device
#define constant
#define thread
#define threadgroup  // what is stored in it was rewritten before
#define kernel
#define METAL_FUNC inline
#define METAL_CONST static constexpr
#define __METAL_VERSION__ 310  // logging comes with 320
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef uint64_t ulong;
typedef _Float16 half;

// bfloat16, rounding to nearest even. As in Metal, numbers become a bfloat only explicitly, and a bfloat becomes a float
// implicitly; arithmetic between two of them rounds.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  template <class A, class = std::enable_if_t<std::is_arithmetic_v<A> || std::is_same_v<A, half>>>
  constexpr explicit bfloat(A value) : bits(rounded(float(value))) {}
  static constexpr bfloat of_bits(uint16_t bits) {
    bfloat b = bfloat(0.0f);
    b.bits = bits;
    return b;
  }
  constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

  template <class A> bfloat& operator+=(A other) { return *this = bfloat(float(*this) + float(other)); }
  template <class A> bfloat& operator-=(A other) { return *this = bfloat(float(*this) - float(other)); }
  template <class A> bfloat& operator*=(A other) { return *this = bfloat(float(*this) * float(other)); }
  template <class A> bfloat& operator/=(A other) { return *this = bfloat(float(*this) / float(other)); }

 private:
  static constexpr uint16_t rounded(float f) {
    const uint32_t u = __builtin_bit_cast(uint32_t, f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40);  // a NaN stays one
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};
#define MSL_BFLOAT(op)                                                                                   \
  inline constexpr bfloat operator op(bfloat a, bfloat b) { return bfloat(float(a) op float(b)); }       \
  template <class I, class = std::enable_if_t<std::is_integral_v<I>>>                                    \
  inline constexpr bfloat operator op(bfloat a, I b) { return bfloat(float(a) op float(b)); }            \
  template <class I, class = std::enable_if_t<std::is_integral_v<I>>>                                    \
  inline constexpr bfloat operator op(I a, bfloat b) { return bfloat(float(a) op float(b)); }
MSL_BFLOAT(+)
MSL_BFLOAT(-)
MSL_BFLOAT(*)
MSL_BFLOAT(/)
inline constexpr bfloat operator-(bfloat a) { return bfloat::of_bits(uint16_t(a.bits ^ 0x8000)); }

template <class To, class From> inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

namespace metal {

using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::is_convertible_v;
using std::is_floating_point_v;
using std::is_integral_v;
using std::is_same_v;

// Only what kernels here use: elements by name or number, elementwise arithmetic. No swizzles.
template <class T, int N> struct vec;
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};
#define MSL_VECTOR(op)                                                                     \
  template <class T, int N> inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {       \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                                    \
    return a;                                                                              \
  }                                                                                        \
  template <class T, int N> inline vec<T, N> operator op(vec<T, N> a, std::common_type_t<T> b) { \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b);                                       \
    return a;                                                                              \
  }
MSL_VECTOR(+)
MSL_VECTOR(-)
MSL_VECTOR(*)
MSL_VECTOR(/)

}  // namespace metal

#define MSL_TYPES(n)              \
  typedef metal::vec<n, 2> n##2;  \
  typedef metal::vec<n, 3> n##3;  \
  typedef metal::vec<n, 4> n##4;
MSL_TYPES(float)
MSL_TYPES(half)
MSL_TYPES(bfloat)
MSL_TYPES(int)
MSL_TYPES(uint)
MSL_TYPES(short)
MSL_TYPES(ushort)
MSL_TYPES(uchar)
MSL_TYPES(ulong)

namespace metal {

template <class T> struct numeric_limits {  // of integers
  static constexpr bool is_signed = T(~T(0)) < T(0);
  static constexpr T max() { return is_signed ? T((uint64_t(1) << (sizeof(T) * 8 - 1)) - 1) : T(~T(0)); }
  static constexpr T min() { return is_signed ? T(uint64_t(1) << (sizeof(T) * 8 - 1)) : T(0); }
};
template <> struct numeric_limits<float> {
  static constexpr float max() { return __FLT_MAX__; }
  static constexpr float min() { return __FLT_MIN__; }
  static constexpr float infinity() { return __builtin_inff(); }
  static constexpr float quiet_NaN() { return __builtin_nanf(""); }
  static constexpr float epsilon() { return __FLT_EPSILON__; }
};
template <> struct numeric_limits<half> {
  static constexpr half max() { return half(65504.f); }
  static constexpr half min() { return half(6.103515625e-05f); }
  static constexpr half infinity() { return half(__builtin_inff()); }
};
template <> struct numeric_limits<bfloat> {
  static constexpr bfloat max() { return bfloat::of_bits(0x7f7f); }
  static constexpr bfloat min() { return bfloat::of_bits(0x0080); }
  static constexpr bfloat infinity() { return bfloat::of_bits(0x7f80); }
};

}  // namespace metal
