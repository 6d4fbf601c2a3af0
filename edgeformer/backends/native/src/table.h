// The table of one instruction set; included last by each isa_*.cc.
#pragma once
#include "attention.h"
#include "linear.h"

#define EDGEFORMER_TABLE(function, label, test)                                                              \
  namespace edgeformer {                                                                                     \
  const Kernels* function() {                                                                                \
    static const Kernels table{label, test, linear, glu, quantize, norm, activate, attend, join, to_halves, row}; \
    return &table;                                                                                           \
  }                                                                                                          \
  }
