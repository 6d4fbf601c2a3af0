// Vectors of 16 lanes in four NEON registers (Armv8.2 with dot products).
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace edgeformer {
namespace {

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct B { uint8x16_t v[4]; };

constexpr int kQ4Zero = 8, kQ8Zero = 0;  // what dot_q4 and dot_q8 leave to be subtracted from each code
constexpr int kRowsAtOnce = 4, kTilesAtOnce = 1, kPairsAtOnce = 2, kValuesAtOnce = 2;

#define EACH for (int i = 0; i < 4; ++i)
inline F set1(float x) { F r; EACH r.v[i] = vdupq_n_f32(x); return r; }
inline F zero() { return set1(0.0f); }
inline F load(const float* p) { F r; EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
inline void store(float* p, F a) { EACH vst1q_f32(p + 4 * i, a.v[i]); }
inline F load_half(const uint16_t* p) {
  F r;
  EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
inline F load_bf16(const uint16_t* p) {
  F r;
  EACH r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
inline void store_half(uint16_t* p, F a) { EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i]))); }
inline F add(F a, F b) { F r; EACH r.v[i] = vaddq_f32(a.v[i], b.v[i]); return r; }
inline F sub(F a, F b) { F r; EACH r.v[i] = vsubq_f32(a.v[i], b.v[i]); return r; }
inline F mul(F a, F b) { F r; EACH r.v[i] = vmulq_f32(a.v[i], b.v[i]); return r; }
inline F div(F a, F b) { F r; EACH r.v[i] = vdivq_f32(a.v[i], b.v[i]); return r; }
inline F fma(F a, F b, F c) { F r; EACH r.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return r; }
inline F max(F a, F b) { F r; EACH r.v[i] = vmaxq_f32(a.v[i], b.v[i]); return r; }
inline F min(F a, F b) { F r; EACH r.v[i] = vminq_f32(a.v[i], b.v[i]); return r; }
inline F abs(F a) { F r; EACH r.v[i] = vabsq_f32(a.v[i]); return r; }
inline F round(F a) { F r; EACH r.v[i] = vrndnq_f32(a.v[i]); return r; }
inline F exp2i(F n) {
  F r;
  EACH r.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23));
  return r;
}
inline float sum(F a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
inline float largest(F a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
inline int32_t store_codes(int8_t* p, F a) {
  int32x4_t c[4];
  EACH c[i] = vcvtnq_s32_f32(a.v[i]);
  const int16x8_t low = vcombine_s16(vmovn_s32(c[0]), vmovn_s32(c[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(c[2]), vmovn_s32(c[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  return vaddvq_s32(vaddq_s32(vaddq_s32(c[0], c[1]), vaddq_s32(c[2], c[3])));
}
inline I set1i(int32_t x) { I r; EACH r.v[i] = vdupq_n_s32(x); return r; }
inline I addi(I a, I b) { I r; EACH r.v[i] = vaddq_s32(a.v[i], b.v[i]); return r; }
inline F to_float(I a) { F r; EACH r.v[i] = vcvtq_f32_s32(a.v[i]); return r; }
inline B load_bytes(const uint8_t* p) { B r; EACH r.v[i] = vld1q_u8(p + 16 * i); return r; }
inline B low4(B a) { B r; EACH r.v[i] = vandq_u8(a.v[i], vdupq_n_u8(15)); return r; }
inline B high4(B a) { B r; EACH r.v[i] = vshrq_n_u8(a.v[i], 4); return r; }
inline int8x16_t four(const int8_t* x) {
  int32_t bits;
  std::memcpy(&bits, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}
inline I dot_q4(I acc, B w, const int8_t* x) {
  const int8x16_t v = four(x);
  I r;
  EACH r.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), v);
  return r;
}
inline I dot_q8(I acc, B w, const int8_t* x) {
  const int8x16_t v = four(x);
  I r;
  EACH r.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(128))), v);
  return r;
}
// Each 32-bit lane with some bits flipped, shifted up, and down again with its sign.
inline F field(const uint8_t* p, uint32_t flip, int up, int down) {
  const B x = load_bytes(p);
  F r;
  EACH {
    const int32x4_t lanes = vreinterpretq_s32_u32(veorq_u32(vreinterpretq_u32_u8(x.v[i]), vdupq_n_u32(flip)));
    r.v[i] = vcvtq_f32_s32(vshlq_s32(vshlq_s32(lanes, vdupq_n_s32(up)), vdupq_n_s32(-down)));
  }
  return r;
}
// Nibble `n` of each 32-bit lane, minus 8; byte `n`, minus 128.
inline F signed_nibble(const uint8_t* p, int n) { return field(p, 0x88888888u, 28 - 4 * n, 28); }
inline F signed_byte(const uint8_t* p, int n) { return field(p, 0x80808080u, 24 - 8 * n, 24); }
// The sums of 16 vectors.
inline F sums(const F* x) {
  float32x4_t quarters[16];
  for (int i = 0; i < 16; ++i) quarters[i] = vaddq_f32(vaddq_f32(x[i].v[0], x[i].v[1]), vaddq_f32(x[i].v[2], x[i].v[3]));
  F r;
  EACH r.v[i] = vpaddq_f32(vpaddq_f32(quarters[4 * i], quarters[4 * i + 1]), vpaddq_f32(quarters[4 * i + 2], quarters[4 * i + 3]));
  return r;
}
// Rows become columns.
inline void transpose(float32x4_t* r) {
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  for (int i = 0; i < 2; ++i) {
    r[i] = vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i]));
    r[2 + i] = vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i]));
  }
}
inline void transpose(F* r) {
  F columns[16];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      float32x4_t block[4];
      for (int k = 0; k < 4; ++k) block[k] = r[4 * i + k].v[j];
      transpose(block);
      for (int k = 0; k < 4; ++k) columns[4 * j + k].v[i] = block[k];
    }
  for (int i = 0; i < 16; ++i) r[i] = columns[i];
}
#undef EACH

}  // namespace
}  // namespace edgeformer
