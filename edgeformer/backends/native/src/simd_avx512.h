// Vectors of 16 lanes in one AVX-512 register (F, BW, DQ, VL, VNNI).
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace edgeformer {
namespace {

using F = __m512;
using I = __m512i;
using B = __m512i;

constexpr int kQ4Zero = 8, kQ8Zero = 128;  // what dot_q4 and dot_q8 leave to be subtracted from each code
constexpr int kRowsAtOnce = 8, kTilesAtOnce = 2, kPairsAtOnce = 4, kValuesAtOnce = 4;

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
inline F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline void store_half(uint16_t* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, 0)); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) { return _mm512_roundscale_ps(a, 8); }
inline F exp2i(F n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }
inline int32_t store_codes(int8_t* p, F a) {
  const __m512i codes = _mm512_cvtps_epi32(a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes));
  return _mm512_reduce_add_epi32(codes);
}
inline I set1i(int32_t x) { return _mm512_set1_epi32(x); }
inline I addi(I a, I b) { return _mm512_add_epi32(a, b); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline B load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline B low4(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline B high4(B a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
inline I dot_q4(I acc, B w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
}
inline I dot_q8(I acc, B w, const int8_t* x) { return dot_q4(acc, w, x); }
// Nibble `n` of each 32-bit lane, minus 8.
inline F signed_nibble(const uint8_t* p, int n) {
  const F values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return _mm512_permutexvar_ps(_mm512_srlv_epi32(load_bytes(p), set1i(4 * n)), values);  // looks at four bits only
}
// Byte `n` of each 32-bit lane, minus 128.
inline F signed_byte(const uint8_t* p, int n) {
  const I flipped = _mm512_xor_si512(load_bytes(p), set1i(static_cast<int32_t>(0x80808080u)));
  return to_float(_mm512_srai_epi32(_mm512_sllv_epi32(flipped, set1i(24 - 8 * n)), 24));
}
// The sums of 16 vectors.
inline F sums(const F* x) {
  F a[8], b[4];
  for (int i = 0; i < 8; ++i) a[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    const __m512d c = _mm512_castps_pd(a[2 * i]), d = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  }
  const F low = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
  const F high = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}
// Rows become columns.
inline void transpose(F* r) {
  F t[16], u[16];
  for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {  // u[i + c]: column c of each quarter, of rows i .. i + 3
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int c = 0; c < 4; ++c) {
    const F low_even = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), low_odd = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
    const F high_even = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88), high_odd = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(low_even, high_even, 0x88), r[8 + c] = _mm512_shuffle_f32x4(low_even, high_even, 0xdd);
    r[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88), r[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

}  // namespace
}  // namespace edgeformer
