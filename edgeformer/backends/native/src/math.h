// Elementwise functions on vectors. Included after one simd_*.h; internal linkage, since each instruction set compiles its own.
#pragma once
#include <cmath>

#include "kernels.h"

namespace edgeformer {
namespace {

// e ** x, relative error below 2e-7, for x from -87 to 88; e ** -87 below, e ** 88 above.
inline F exp(F x) {
  x = max(set1(-87.0f), min(set1(88.0f), x));  // in this order: min and max return their second operand where one is NaN
  const F n = round(mul(x, set1(1.44269504f)));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return mul(p, exp2i(n));
}

inline F sigmoid(F x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }
inline F tanh(F x) { return sub(mul(set1(2.0f), sigmoid(add(x, x))), set1(1.0f)); }

// The error function by Abramowitz & Stegun 7.1.26 (absolute error below 1.5e-7).
inline F erf(F x) {
  const F a = abs(x), t = div(set1(1.0f), fma(set1(0.3275911f), a, set1(1.0f)));
  F p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  const F y = sub(set1(1.0f), mul(mul(p, t), exp(sub(zero(), mul(a, a)))));
  const F sign = min(max(mul(x, set1(1e30f)), set1(-1.0f)), set1(1.0f));
  return mul(y, sign);
}

template <Act act>
inline F apply(F x) {
  switch (act) {
    case Act::kNone: return x;
    case Act::kSilu: return mul(x, sigmoid(x));
    case Act::kGelu: return mul(mul(x, set1(0.5f)), add(erf(mul(x, set1(0.70710678118654752f))), set1(1.0f)));
    case Act::kGeluTanh: {
      const F cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
      return mul(mul(x, set1(0.5f)), add(tanh(mul(cubic, set1(0.79788456080286536f))), set1(1.0f)));
    }
    case Act::kQuickGelu: return mul(x, sigmoid(mul(x, set1(1.702f))));
    case Act::kRelu: return max(zero(), x);
    case Act::kRelu2: return mul(max(zero(), x), max(zero(), x));
    case Act::kSigmoid: return sigmoid(x);
    case Act::kTanh: return tanh(x);
  }
  return x;
}

inline F activated(Act act, F x) {
  switch (act) {
    case Act::kNone: return x;
    case Act::kSilu: return apply<Act::kSilu>(x);
    case Act::kGelu: return apply<Act::kGelu>(x);
    case Act::kGeluTanh: return apply<Act::kGeluTanh>(x);
    case Act::kQuickGelu: return apply<Act::kQuickGelu>(x);
    case Act::kRelu: return apply<Act::kRelu>(x);
    case Act::kRelu2: return apply<Act::kRelu2>(x);
    case Act::kSigmoid: return apply<Act::kSigmoid>(x);
    case Act::kTanh: return apply<Act::kTanh>(x);
  }
  return x;
}

inline F load_some(const float* p, int count) {
  if (count >= kLanes) return load(p);
  float t[kLanes] = {};
  for (int i = 0; i < count; ++i) t[i] = p[i];
  return load(t);
}

inline void store_some(float* p, F x, int count) {
  if (count >= kLanes) return store(p, x);
  float t[kLanes];
  store(t, x);
  for (int i = 0; i < count; ++i) p[i] = t[i];
}

inline int lanes_left(int64_t at, int64_t count) { return static_cast<int>(count - at < kLanes ? count - at : kLanes); }

void activate(Act act, float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = lanes_left(i, count);
    store_some(x + i, activated(act, load_some(x + i, n)), n);
  }
}

// Within an int8's range, whatever a faulty row holds.
inline F code(F x) { return max(min(x, set1(127.0f)), set1(-127.0f)); }

// Int8 codes of groups of 32: scale = largest / 127, rounded to nearest. int8 has no NaN: a scale carries it on.
void quantize(const float* x, int64_t count, const Codes& to) {
  F faults = zero();
  for (int64_t g = 0; g < count / kGroup; ++g) {
    const F a = load(x + g * kGroup), b = load(x + g * kGroup + kLanes);
    const float top = largest(max(abs(a), abs(b)));
    const F inverse = set1(top > 0 ? 127.0f / top : 0.0f);
    int8_t* codes = to.codes + g * kGroup;
    to.scales[g] = top / 127.0f;
    to.sums[g] = store_codes(codes, code(mul(a, inverse))) + store_codes(codes + kLanes, code(mul(b, inverse)));
    faults = fma(a, zero(), fma(b, zero(), faults));  // 0, or NaN
  }
  const float fault = sum(faults);
  if (fault != fault && count > 0) to.scales[0] = fault;
}

void norm(NormKind kind, const float* x, const float* d, float* total, float* y, int64_t count, const float* weight,
          const float* bias, float eps) {
  F sums = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = lanes_left(i, count);
    F v = load_some(x + i, n);
    if (d != nullptr) v = add(v, load_some(d + i, n));
    if (total != nullptr) store_some(total + i, v, n);
    sums = kind == NormKind::kRms ? fma(v, v, sums) : add(sums, v);
  }
  const float* from = total != nullptr ? total : x;
  const float inverse = 1.0f / static_cast<float>(count);
  float mean = 0.0f, square = sum(sums) * inverse;
  if (kind == NormKind::kLayer) {
    mean = square;
    sums = zero();
    for (int64_t i = 0; i < count; i += kLanes) {
      const int n = lanes_left(i, count);
      F v = sub(load_some(from + i, n), set1(mean));
      if (n < kLanes) {  // the empty lanes hold -mean
        float t[kLanes] = {};
        store_some(t, v, n);
        v = load(t);
      }
      sums = fma(v, v, sums);
    }
    square = sum(sums) * inverse;
  }
  const F scale = set1(1.0f / std::sqrt(square + eps)), shift = set1(mean);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = lanes_left(i, count);
    F v = load_some(from + i, n);
    v = mul(kind == NormKind::kRms ? v : sub(v, shift), scale);
    if (weight != nullptr) v = mul(v, load_some(weight + i, n));
    if (bias != nullptr) v = add(v, load_some(bias + i, n));
    store_some(y + i, v, n);
  }
}

}  // namespace
}  // namespace edgeformer
