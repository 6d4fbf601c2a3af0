// edgeformer::GluFfn(x [..., D], gate [F, D], up [F, D], down [D, F]; act) -> down · (act(gate · x) ⊙ (up · x))
//
// Weights are read as stored, [outputs, inputs], and are neither copied nor packed.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tensor.h"

namespace edgeformer {

using Activation = float (*)(float);

inline Activation activation(const std::string& name) {
  if (name == "silu") return [](float x) { return x / (1.0f + std::exp(-x)); };
  if (name == "gelu") return [](float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f)); };
  if (name == "gelu_tanh")
    return [](float x) { return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x))); };
  if (name == "quick_gelu") return [](float x) { return x / (1.0f + std::exp(-1.702f * x)); };
  if (name == "relu") return [](float x) { return std::max(x, 0.0f); };
  if (name == "relu2") return [](float x) { return x > 0 ? x * x : 0.0f; };
  if (name == "sigmoid") return [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
  if (name == "tanh") return [](float x) { return std::tanh(x); };
  return nullptr;
}

struct GluFfn {
  static constexpr const char* kName = "GluFfn";
  static constexpr size_t kInputs = 4;
  static constexpr int64_t kBlock = 32;  // outputs per task: enough work to outweigh the cost of scheduling it
  Activation act;

  ort::Status create(const void* info) {
    act = activation(attribute_string(info, "act"));
    return act != nullptr ? nullptr : ort::error("edgeformer::GluFfn: unknown activation in the attribute 'act'");
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0), gate = context.input(1), up = context.input(2), down = context.input(3);
    const int64_t rows = x.rows(), width = x.last(), hidden = gate.shape[0];
    std::vector<int64_t> shape = x.shape;
    float* y = context.output(0, shape);
    std::vector<float> middle(static_cast<size_t>(rows * hidden));
    blocks(context, hidden, [&](int64_t f) {
      const float *g = gate.data + f * width, *u = up.data + f * width;
      for (int64_t r = 0; r < rows; ++r) {
        const float* in = x.data + r * width;
        middle[static_cast<size_t>(r * hidden + f)] = act(dot(g, in, width)) * dot(u, in, width);
      }
    });
    blocks(context, width, [&](int64_t d) {
      const float* weights = down.data + d * hidden;
      for (int64_t r = 0; r < rows; ++r) y[r * width + d] = dot(weights, middle.data() + r * hidden, hidden);
    });
  }

 private:
  template <typename Body>
  static void blocks(const Context& context, int64_t count, const Body& body) {
    context.parallel(static_cast<size_t>((count + kBlock - 1) / kBlock), [&](size_t block) {
      const int64_t start = static_cast<int64_t>(block) * kBlock;
      for (int64_t i = start; i < std::min(start + kBlock, count); ++i) body(i);
    });
  }
};

}  // namespace edgeformer
