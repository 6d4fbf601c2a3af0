#include "kernels.h"

#if defined(__aarch64__)
#include "half.h"
#include "simd_neon.h"

#include "table.h"

#if defined(__linux__)
#include <sys/auxv.h>
#endif

EDGEFORMER_TABLE(neon_kernels, "neon", [] {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) >> 20 & 1) != 0;  // HWCAP_ASIMDDP
#else
  return true;  // every Apple processor since the M1 has dot products
#endif
})
#else
namespace edgeformer {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace edgeformer
#endif
