#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include "half.h"
#include "simd_avx512.h"

#include "table.h"

EDGEFORMER_TABLE(avx512_kernels, "avx512vnni", [] {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
})
#else
namespace edgeformer {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace edgeformer
#endif
