// Metal's mathematical functions. half and bfloat compute in float and round, as MLX's bf16_math.h has it on the device.
// What Metal doesn't have (erf) isn't here, so that using it fails to compile.
#pragma once
#include "types.h"

#define MSL_FUNCTION(name, compute)                                          \
  inline float name(float x) { return compute; }                             \
  inline half name(half h) { const float x = float(h); return half(compute); } \
  inline bfloat name(bfloat b) { const float x = float(b); return bfloat(compute); }
#define MSL_FUNCTIONS                              \
  MSL_FUNCTION(exp, __builtin_expf(x))             \
  MSL_FUNCTION(exp2, __builtin_exp2f(x))           \
  MSL_FUNCTION(log, __builtin_logf(x))             \
  MSL_FUNCTION(log2, __builtin_log2f(x))           \
  MSL_FUNCTION(sqrt, __builtin_sqrtf(x))           \
  MSL_FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(x))   \
  MSL_FUNCTION(sin, __builtin_sinf(x))             \
  MSL_FUNCTION(cos, __builtin_cosf(x))             \
  MSL_FUNCTION(tanh, __builtin_tanhf(x))           \
  MSL_FUNCTION(fabs, __builtin_fabsf(x))           \
  MSL_FUNCTION(abs, __builtin_fabsf(x))            \
  MSL_FUNCTION(floor, __builtin_floorf(x))         \
  MSL_FUNCTION(ceil, __builtin_ceilf(x))           \
  MSL_FUNCTION(round, __builtin_roundf(x))         \
  MSL_FUNCTION(rint, __builtin_rintf(x))

namespace metal {

MSL_FUNCTIONS
namespace precise {
MSL_FUNCTIONS
}
namespace fast {
MSL_FUNCTIONS
}
inline int abs(int x) { return x < 0 ? -x : x; }
inline float atan2(float y, float x) { return __builtin_atan2f(y, x); }
inline float pow(float x, float y) { return __builtin_powf(x, y); }
inline float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
inline float fmin(float a, float b) { return __builtin_fminf(a, b); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> inline T select(T no, T yes, bool condition) { return condition ? yes : no; }
inline bool isnan(float x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }

}  // namespace metal
