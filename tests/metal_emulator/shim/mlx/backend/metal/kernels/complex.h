// Stands in for MLX's, which overloads on address spaces: what its utils.h needs of complex numbers.
#pragma once
#include "simd.h"
template <typename T> struct complex_t {
  T real, imag;
  constexpr complex_t(T real = T(0), T imag = T(0)) : real(real), imag(imag) {}
};
typedef complex_t<float> complex64_t;
template <typename T> static constexpr bool is_complex_v = false;
inline complex64_t operator+(complex64_t a, complex64_t b) { return {a.real + b.real, a.imag + b.imag}; }
inline complex64_t operator*(complex64_t a, complex64_t b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
