// Vectors of 16 lanes in two AVX2 registers (AVX2, FMA, F16C).
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace edgeformer {
namespace {

struct F { __m256 a, b; };
struct I { __m256i a, b; };
using B = I;

constexpr int kQ4Zero = 8, kQ8Zero = 0;  // what dot_q4 and dot_q8 leave to be subtracted from each code
constexpr int kRowsAtOnce = 4, kTilesAtOnce = 1, kPairsAtOnce = 2, kValuesAtOnce = 2;

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline F load_half(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
inline __m256 widen_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
}
inline F load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, 0));
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F round(F x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
inline __m256 exp2i(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F exp2i(F n) { return {exp2i(n.a), exp2i(n.b)}; }
inline float sum(F x) {
  const __m256 t = _mm256_add_ps(x.a, x.b);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(F x) {
  const __m256 t = _mm256_max_ps(x.a, x.b);
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline int32_t sum(__m256i t) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline int32_t store_codes(int8_t* p, F x) {
  const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);  // in order again
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  return sum(_mm256_add_epi32(a, b));
}
inline I set1i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I addi(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline B load_bytes(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline B low4(B x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline B high4(B x) { return low4({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
// Unsigned codes up to 15 times signed ones: two products fit 16 bits.
inline __m256i dot_q4(__m256i acc, __m256i w, __m256i x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline I dot_q4(I acc, B w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i v = _mm256_set1_epi32(four);
  return {dot_q4(acc.a, w.a, v), dot_q4(acc.b, w.b, v)};
}
// Codes of 128 + weight, weights in -127..127: |weight| times the activation with the weight's sign; 2 * 127 * 127 fits 16 bits.
inline __m256i dot_q8(__m256i acc, __m256i w, __m256i x) {
  const __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
  return dot_q4(acc, _mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
}
inline I dot_q8(I acc, B w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i v = _mm256_set1_epi32(four);
  return {dot_q8(acc.a, w.a, v), dot_q8(acc.b, w.b, v)};
}
// Nibble `n` of each 32-bit lane, minus 8.
inline __m256 signed_nibble(__m256i x, int n) {
  const __m256i flipped = _mm256_xor_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0x88888888u)));
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sllv_epi32(flipped, _mm256_set1_epi32(28 - 4 * n)), 28));
}
inline F signed_nibble(const uint8_t* p, int n) {
  const B x = load_bytes(p);
  return {signed_nibble(x.a, n), signed_nibble(x.b, n)};
}
// Byte `n` of each 32-bit lane, minus 128.
inline __m256 signed_byte(__m256i x, int n) {
  const __m256i flipped = _mm256_xor_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0x80808080u)));
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_sllv_epi32(flipped, _mm256_set1_epi32(24 - 8 * n)), 24));
}
inline F signed_byte(const uint8_t* p, int n) {
  const B x = load_bytes(p);
  return {signed_byte(x.a, n), signed_byte(x.b, n)};
}
// The sums of 16 vectors.
inline __m256 sums(const __m256* x) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
inline F sums(const F* x) {
  __m256 halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = _mm256_add_ps(x[i].a, x[i].b);
  return {sums(halves), sums(halves + 8)};
}
// Rows become columns.
inline void transpose(__m256* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j)
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44), u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
  for (int c = 0; c < 4; ++c)
    r[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20), r[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
}
inline void transpose(F* r) {
  __m256 q[4][8];  // [row half, column half]
  for (int i = 0; i < 8; ++i) q[0][i] = r[i].a, q[1][i] = r[i].b, q[2][i] = r[8 + i].a, q[3][i] = r[8 + i].b;
  for (auto& quarter : q) transpose(quarter);
  for (int i = 0; i < 8; ++i) r[i] = {q[0][i], q[2][i]}, r[8 + i] = {q[1][i], q[3][i]};
}

}  // namespace
}  // namespace edgeformer
