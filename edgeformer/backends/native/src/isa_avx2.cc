#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include "half.h"
#include "simd_avx2.h"

#include "table.h"

EDGEFORMER_TABLE(avx2_kernels, "avx2", [] {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
})
#else
namespace edgeformer {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace edgeformer
#endif
