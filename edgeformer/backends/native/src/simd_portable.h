// Vectors of 16 lanes in plain C++, for any processor; the compiler vectorizes what it can.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace edgeformer {
namespace {

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };  // 16 lanes of four bytes

constexpr int kQ4Zero = 8, kQ8Zero = 0;  // what dot_q4 and dot_q8 leave to be subtracted from each code
constexpr int kRowsAtOnce = 4, kTilesAtOnce = 1, kPairsAtOnce = 2, kValuesAtOnce = 2;

#define EACH for (int i = 0; i < 16; ++i)
inline F zero() { return F{}; }
inline F set1(float x) { F r; EACH r.v[i] = x; return r; }
inline F load(const float* p) { F r; std::memcpy(r.v, p, 64); return r; }
inline void store(float* p, const F& a) { std::memcpy(p, a.v, 64); }
inline F load_half(const uint16_t* p) { F r; EACH r.v[i] = from_half(p[i]); return r; }
inline F load_bf16(const uint16_t* p) { F r; EACH r.v[i] = from_bf16(p[i]); return r; }
inline void store_half(uint16_t* p, const F& a) { EACH p[i] = to_half(a.v[i]); }
inline F add(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
inline F sub(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] - b.v[i]; return r; }
inline F mul(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] * b.v[i]; return r; }
inline F div(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] / b.v[i]; return r; }
inline F fma(const F& a, const F& b, const F& c) { F r; EACH r.v[i] = a.v[i] * b.v[i] + c.v[i]; return r; }
inline F max(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
inline F min(const F& a, const F& b) { F r; EACH r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return r; }
inline F abs(const F& a) { F r; EACH r.v[i] = std::fabs(a.v[i]); return r; }
inline F round(const F& a) { F r; EACH r.v[i] = std::nearbyint(a.v[i]); return r; }
// A conversion of NaN or of what doesn't fit is undefined in C++.
inline int32_t whole(float x) { return x > -1e9f && x < 1e9f ? static_cast<int32_t>(x) : 0; }
// 2 ** n for whole n in [-126, 127].
inline F exp2i(const F& n) {
  F r;
  EACH { const int32_t bits = (whole(n.v[i]) + 127) << 23; std::memcpy(&r.v[i], &bits, 4); }
  return r;
}
inline float sum(const F& a) { float t = 0; EACH t += a.v[i]; return t; }
inline float largest(const F& a) { float t = a.v[0]; EACH t = a.v[i] > t ? a.v[i] : t; return t; }
// Rounds to int8, stores 16 bytes, and returns the sum.
inline int32_t store_codes(int8_t* p, const F& a) {
  int32_t t = 0;
  EACH { const int32_t c = whole(std::nearbyint(a.v[i])); p[i] = static_cast<int8_t>(c); t += p[i]; }
  return t;
}
inline I set1i(int32_t x) { I r; EACH r.v[i] = x; return r; }
inline I addi(const I& a, const I& b) { I r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
inline F to_float(const I& a) { F r; EACH r.v[i] = static_cast<float>(a.v[i]); return r; }
inline B load_bytes(const uint8_t* p) { B r; std::memcpy(r.v, p, 64); return r; }
inline B low4(const B& a) { B r; for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] & 15; return r; }
inline B high4(const B& a) { B r; for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] >> 4; return r; }
// acc + the four products of each lane; `x` points to four int8.
inline I dot_q4(const I& acc, const B& w, const int8_t* x) {
  I r;
  EACH { int32_t t = 0; for (int k = 0; k < 4; ++k) t += static_cast<int32_t>(w.v[4 * i + k]) * x[k]; r.v[i] = acc.v[i] + t; }
  return r;
}
inline I dot_q8(const I& acc, const B& w, const int8_t* x) {
  I r;
  EACH { int32_t t = 0; for (int k = 0; k < 4; ++k) t += (static_cast<int32_t>(w.v[4 * i + k]) - 128) * x[k]; r.v[i] = acc.v[i] + t; }
  return r;
}
// Nibble `n` of each 32-bit lane, minus 8; byte `n`, minus 128.
inline F signed_nibble(const uint8_t* p, int n) {
  F r;
  EACH r.v[i] = static_cast<float>((p[4 * i + n / 2] >> (n % 2 * 4) & 15) - 8);
  return r;
}
inline F signed_byte(const uint8_t* p, int n) { F r; EACH r.v[i] = static_cast<float>(p[4 * i + n] - 128); return r; }
// The sums of 16 vectors.
inline F sums(const F* x) { F r; EACH r.v[i] = sum(x[i]); return r; }
// Rows become columns.
inline void transpose(F* r) {
  EACH for (int j = 0; j < i; ++j) {
    const float t = r[i].v[j];
    r[i].v[j] = r[j].v[i];
    r[j].v[i] = t;
  }
}
#undef EACH

}  // namespace
}  // namespace edgeformer
