// edgeformer::RMSNorm(x [..., D], weight [D]; eps) -> y = x / sqrt(mean(x²) + eps) · weight
#pragma once
#include <cmath>

#include "tensor.h"

namespace edgeformer {

struct RMSNorm {
  static constexpr const char* kName = "RMSNorm";
  static constexpr size_t kInputs = 2;
  float eps;

  ort::Status create(const void* info) {
    eps = attribute_float(info, "eps", 1e-6f);
    return nullptr;
  }

  void compute(const Context& context) const {
    const Tensor x = context.input(0), weight = context.input(1);
    const int64_t width = x.last();
    float* y = context.output(0, x.shape);
    context.parallel(static_cast<size_t>(x.rows()), [&](size_t row) {
      const float* in = x.data + row * width;
      float* out = y + row * width;
      const float scale = 1.0f / std::sqrt(dot(in, in, width) / static_cast<float>(width) + eps);
      for (int64_t i = 0; i < width; ++i) out[i] = in[i] * scale * weight.data[i];
    });
  }
};

}  // namespace edgeformer
