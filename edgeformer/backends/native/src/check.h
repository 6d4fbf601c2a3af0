// What the parts of the check share.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "engine.h"
#include "half.h"

namespace edgeformer {

inline std::mt19937 generator(0);
inline int failures = 0;

inline std::vector<float> normal(int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = draw(generator);
  return out;
}

inline void expect_close(const std::vector<float>& found, const std::vector<float>& expected, float limit, const char* what,
                  const char* isa, int64_t detail) {
  float top = 1.0f, worst = 0.0f;
  for (float x : expected) top = std::fmax(top, std::fabs(x));
  for (size_t i = 0; i < found.size(); ++i) {
    const float error = std::fabs(found[i] - expected[i]);
    worst = error <= worst ? worst : error;  // a NaN stays
  }
  if (!(worst <= limit * top)) {
    std::printf("%s on %s (%lld): error %g of %g\n", what, isa, static_cast<long long>(detail), worst, top);
    ++failures;
  }
}

// A matrix with random weights of a kind.
inline int add_random(Model& model, Kind kind, int64_t rows, int64_t cols, int64_t parts = 1) {
  const int64_t tiles = (rows + kLanes - 1) / kLanes;
  const int index = model.add_matrix(kind, rows * parts, cols, tiles * parts);
  for (int64_t p = 0; p < parts; ++p) {
    const std::vector<float> w = normal(rows * cols, 0.1f);
    std::vector<uint16_t> halves(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &w[i], 4);
      halves[i] = kind == Kind::kBF16 ? static_cast<uint16_t>(bits >> 16) : to_half(w[i]);
    }
    std::vector<uint8_t> codes(w.size());
    for (uint8_t& c : codes) c = static_cast<uint8_t>(1 + generator() % 255);
    std::vector<uint16_t> scales(static_cast<size_t>(rows * (cols / kGroup + 1)));
    for (uint16_t& s : scales) s = to_half(1e-3f * static_cast<float>(1 + generator() % 16));
    const void* data = kind == Kind::kF32 ? static_cast<const void*>(w.data())
                       : grouped(kind)    ? static_cast<const void*>(codes.data())
                                          : static_cast<const void*>(halves.data());
    model.fill(index, p, parts, 0, rows, data, scales.data());
  }
  return index;
}

// An instruction that refers to nothing but its rows.
inline Instruction instruction(Op op, int32_t dst, int32_t src) {
  Instruction i{};
  i.op = op, i.dst = dst, i.src = src;
  i.other = i.total = i.matrix = i.weight = i.bias = i.cache = i.table = i.slopes = i.sinks = -1;
  i.scale = 1.0f;
  return i;
}

// An encoder on padded texts: with every thread count the same, and close to the portable one.
void check_encoder(const Kernels& k, const Kernels& portable);

}  // namespace edgeformer
