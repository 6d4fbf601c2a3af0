// edgeformer::RMSNorm(x [..., D], weight [D]; eps) -> y = x / sqrt(mean(x²) + eps) · weight
#pragma once
#include "kernels.h"
#include "ort_tensor.h"

namespace edgeformer {

struct RMSNorm {
  static constexpr const char* kName = "RMSNorm";
  static constexpr size_t kInputs = 2;
  const Kernels* kernels = kernels_here();
  float eps;

  explicit RMSNorm(const Info& info) : eps(info.number("eps", 1e-6f)) {}

  void compute(const Context& context) const {
    const Tensor x = context.input(0), weight = context.input(1);
    const int64_t width = x.last();
    if (x.type != ort::kFloat || weight.type != ort::kFloat || weight.count() != width)
      throw std::runtime_error("edgeformer::RMSNorm: x must be float32 [..., D] and weight float32 [D]");
    float* y = static_cast<float*>(context.output(0, x.shape));
    context.parallel(static_cast<size_t>(x.rows()), [&](size_t r) {
      const int64_t at = static_cast<int64_t>(r) * width;
      kernels->norm(NormKind::kRms, x.as<float>() + at, nullptr, nullptr, y + at, width, weight.as<float>(), nullptr, eps);
    });
  }
};

}  // namespace edgeformer
