// Simdgroup operations, barriers, threadgroup storage and atomics. Operations are told apart by their source line, not by
// their address: an unrolled loop is still one operation.
#pragma once
#include "../runtime.h"
#include "math.h"

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

#define MSL_SITE int site = __builtin_LINE()
inline void threadgroup_barrier(mem_flags, MSL_SITE) { msl_barrier(site); }
inline void simdgroup_barrier(mem_flags, MSL_SITE) {
  char nothing = 0;
  msl_simd(&nothing, 1, site);
}

template <class T> struct lanes_of {
  msl_lanes lanes;
  T operator[](uint32_t i) const {
    T value;
    __builtin_memcpy(&value, lanes.values[i], sizeof value);
    return value;
  }
  bool active(uint32_t i) const { return lanes.active >> i & 1; }
  uint32_t own() const { return lanes.lane; }
};
template <class T> inline lanes_of<T> exchange(T value, int site) {
  static_assert(sizeof(T) <= 32, "a value too large for a simdgroup operation");
  return {msl_simd(&value, sizeof value, site)};
}

// bfloat sums in float; Apple documents no order of reduction, so results are compared with a tolerance
template <class T> struct reduced_in { typedef T type; };
template <> struct reduced_in<bfloat> { typedef float type; };
template <class T, class F> inline T reduce(T value, F combine, int site) {
  typedef typename reduced_in<T>::type A;
  const auto all = exchange(value, site);
  A a[32];
  bool on[32];
  for (uint32_t i = 0; i < 32; i++)
    if ((on[i] = all.active(i))) a[i] = A(all[i]);
  for (uint32_t offset = 16; offset; offset /= 2)
    for (uint32_t i = 0; i < offset; i++)
      if (on[i + offset]) {
        a[i] = on[i] ? A(combine(a[i], a[i + offset])) : a[i + offset];
        on[i] = true;
      }
  return T(a[0]);
}
template <class T> inline T simd_sum(T v, MSL_SITE) { return reduce(v, [](auto a, auto b) { return a + b; }, site); }
template <class T> inline T simd_max(T v, MSL_SITE) { return reduce(v, [](auto a, auto b) { return a < b ? b : a; }, site); }
template <class T> inline T simd_min(T v, MSL_SITE) { return reduce(v, [](auto a, auto b) { return b < a ? b : a; }, site); }
inline bool simd_any(bool v, MSL_SITE) { return simd_max(int(v), site); }
inline bool simd_all(bool v, MSL_SITE) { return simd_min(int(v), site); }

template <class T> inline T from_lane(const lanes_of<T>& all, uint32_t source, T own, int site) {
  if (source > 31) return own;
  if (!all.active(source)) {
    msl_fail("a shuffle reads a lane that takes no part", site);
    return own;
  }
  return all[source];
}
template <class T> inline T simd_broadcast(T v, ushort lane, MSL_SITE) { return from_lane(exchange(v, site), lane, v, site); }
template <class T> inline T simd_shuffle(T v, ushort lane, MSL_SITE) { return from_lane(exchange(v, site), lane, v, site); }
template <class T> inline T simd_shuffle_xor(T v, ushort mask, MSL_SITE) {
  const auto all = exchange(v, site);
  return from_lane(all, all.own() ^ mask, v, site);
}
template <class T> inline T simd_shuffle_down(T v, ushort by, MSL_SITE) {
  const auto all = exchange(v, site);
  return from_lane(all, all.own() + by, v, site);
}
template <class T> inline T simd_shuffle_up(T v, ushort by, MSL_SITE) {
  const auto all = exchange(v, site);
  return all.own() < by ? v : from_lane(all, all.own() - by, v, site);
}
template <class T> inline T simd_shuffle_and_fill_up(T v, T filling, ushort by, MSL_SITE) {
  const auto all = exchange(v, site);
  return all.own() < by ? filling : from_lane(all, all.own() - by, v, site);
}
template <class T> inline T simd_prefix_inclusive_sum(T v, MSL_SITE) {
  const auto all = exchange(v, site);
  T sum = T(0);
  for (uint32_t i = 0; i <= all.own(); i++)
    if (all.active(i)) sum = T(sum + all[i]);
  return sum;
}
template <class T> inline T quad_sum(T v, MSL_SITE) {
  const auto all = exchange(v, site);
  const uint32_t quad = all.own() & ~3u;
  return T(T(all[quad] + all[quad + 1]) + T(all[quad + 2] + all[quad + 3]));
}

template <class Array> inline Array& threadgroup_storage(int id) {
  return *static_cast<Array*>(msl_threadgroup_storage(sizeof(Array), id));
}

template <class T> struct atomic { T value; };
enum memory_order { memory_order_relaxed };

}  // namespace metal
using namespace metal;
