#include "simd_portable.h"

#include "table.h"

EDGEFORMER_TABLE(portable_kernels, "portable", [] { return true; })
