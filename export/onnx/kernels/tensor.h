// A kernel's interface to ONNX Runtime: input tensors, an output, attributes, and the thread pool.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace edgeformer {

struct Tensor {
  const float* data;
  std::vector<int64_t> shape;
  int64_t last() const { return shape.back(); }
  int64_t rows() const {
    int64_t n = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) n *= shape[i];
    return n;
  }
};

class Context {
 public:
  explicit Context(void* raw) : raw_(raw) {}

  Tensor input(size_t index) const {
    const void* value = nullptr;
    ort::call(ort::kKernelContextGetInput, static_cast<const void*>(raw_), index, &value);
    void *info = nullptr, *data = nullptr;
    ort::call(ort::kGetTensorTypeAndShape, value, &info);
    size_t rank = 0;
    ort::call(ort::kGetDimensionsCount, static_cast<const void*>(info), &rank);
    std::vector<int64_t> shape(rank);
    ort::call(ort::kGetDimensions, static_cast<const void*>(info), shape.data(), rank);
    reinterpret_cast<void(ORT_CALL*)(void*)>(const_cast<void*>(ort::api[ort::kReleaseTensorTypeAndShapeInfo]))(info);
    ort::call(ort::kGetTensorMutableData, const_cast<void*>(value), &data);
    return {static_cast<const float*>(data), std::move(shape)};
  }

  float* output(size_t index, const std::vector<int64_t>& shape) const {
    void *value = nullptr, *data = nullptr;
    ort::call(ort::kKernelContextGetOutput, raw_, index, shape.data(), shape.size(), &value);
    ort::call(ort::kGetTensorMutableData, value, &data);
    return static_cast<float*>(data);
  }

  // Runs body(i) for i in [0, count) on ONNX Runtime's own intra-op threads.
  void parallel(size_t count, const std::function<void(size_t)>& body) const {
    auto run = [](void* user, size_t i) { (*static_cast<const std::function<void(size_t)>*>(user))(i); };
    ort::call(ort::kKernelContextParallelFor, static_cast<const void*>(raw_), static_cast<void (*)(void*, size_t)>(run),
              count, size_t{0}, const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void* raw_;
};

inline float attribute_float(const void* info, const char* name, float otherwise) {
  float value = otherwise;
  if (ort::call(ort::kKernelInfoGetAttributeFloat, info, name, &value) != nullptr) return otherwise;
  return value;
}

inline std::string attribute_string(const void* info, const char* name) {
  size_t size = 0;
  ort::call(ort::kKernelInfoGetAttributeString, info, name, static_cast<char*>(nullptr), &size);
  std::string value(size, '\0');
  if (size == 0 || ort::call(ort::kKernelInfoGetAttributeString, info, name, value.data(), &size) != nullptr) return "";
  value.resize(size - 1);  // the size counts the terminating zero
  return value;
}

// Sum of a[i]·b[i]; the compiler vectorises it.
inline float dot(const float* a, const float* b, int64_t n) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += a[i] * b[i];
  return total;
}

}  // namespace edgeformer
