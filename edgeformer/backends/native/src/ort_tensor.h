// A kernel's interface to ONNX Runtime: input tensors, outputs, attributes, and the thread pool.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace edgeformer {

// A tensor of ONNX Runtime's; the data stays its own.
struct Tensor {
  const void* data = nullptr;
  int type = ort::kUndefined;
  std::vector<int64_t> shape;

  template <typename T>
  const T* as() const { return static_cast<const T*>(data); }
  int64_t last() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const { return last() == 0 ? 0 : count() / last(); }
  int64_t count() const {
    int64_t n = data == nullptr ? 0 : 1;  // no data: no tensor, or an empty one
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Releases an object of ONNX Runtime's.
struct Owned {
  void* object;
  ort::Slot release;
  ~Owned() {
    if (object != nullptr) ort::release(release, object);
  }
};

inline Tensor tensor_of(const void* value) {
  Tensor made;
  void *info = nullptr, *data = nullptr;
  ort::check(ort::call(ort::kGetTensorTypeAndShape, value, &info));
  const Owned owner{info, ort::kReleaseTensorTypeAndShapeInfo};
  size_t rank = 0;
  ort::check(ort::call(ort::kGetTensorElementType, static_cast<const void*>(info), &made.type));
  ort::check(ort::call(ort::kGetDimensionsCount, static_cast<const void*>(info), &rank));
  made.shape.resize(rank);
  ort::check(ort::call(ort::kGetDimensions, static_cast<const void*>(info), made.shape.data(), rank));
  ort::check(ort::call(ort::kGetTensorMutableData, const_cast<void*>(value), &data));
  made.data = data;
  return made;
}

class Context {
 public:
  explicit Context(void* raw) : raw_(raw) {}

  Tensor input(size_t index) const {
    const void* value = nullptr;
    ort::check(ort::call(ort::kKernelContextGetInput, static_cast<const void*>(raw_), index, &value));
    if (value == nullptr) throw std::runtime_error("input " + std::to_string(index) + " is missing");
    return tensor_of(value);
  }

  void* output(size_t index, const std::vector<int64_t>& shape) const {
    void *value = nullptr, *data = nullptr;
    ort::check(ort::call(ort::kKernelContextGetOutput, raw_, index, shape.data(), shape.size(), &value));
    if (value == nullptr) throw std::runtime_error("output " + std::to_string(index) + " is missing");
    ort::check(ort::call(ort::kGetTensorMutableData, value, &data));
    return data;
  }

  // Runs body(i) for i in [0, count) on ONNX Runtime's own intra-op threads.
  void parallel(size_t count, const std::function<void(size_t)>& body) const {
    auto run = [](void* user, size_t i) { (*static_cast<const std::function<void(size_t)>*>(user))(i); };
    ort::check(ort::call(ort::kKernelContextParallelFor, static_cast<const void*>(raw_), static_cast<void (*)(void*, size_t)>(run),
                         count, size_t{0}, const_cast<void*>(static_cast<const void*>(&body))));
  }

 private:
  void* raw_;
};

// What a kernel is made from: attributes, and the inputs that never change.
class Info {
 public:
  explicit Info(const void* raw) : raw_(raw) {}

  float number(const char* name, float otherwise) const {
    float value = otherwise;
    if (ort::Status status = ort::call(ort::kKernelInfoGetAttributeFloat, raw_, name, &value)) {
      ort::release(ort::kReleaseStatus, status);
      return otherwise;
    }
    return value;
  }

  std::string text(const char* name) const {
    size_t size = 0;
    if (ort::Status status = ort::call(ort::kKernelInfoGetAttributeString, raw_, name, static_cast<char*>(nullptr), &size))
      ort::release(ort::kReleaseStatus, status);  // it has told the size
    std::string value(size, '\0');
    if (size == 0) return value;
    ort::check(ort::call(ort::kKernelInfoGetAttributeString, raw_, name, value.data(), &size));
    value.resize(size - 1);  // the size counts the terminating zero
    return value;
  }

  // A tensor attribute's bytes.
  std::vector<uint8_t> bytes(const char* name) const {
    void *allocator = nullptr, *value = nullptr;
    ort::check(ort::call(ort::kGetAllocatorWithDefaultOptions, &allocator));
    ort::check(ort::call(ort::kKernelInfoGetAttributeTensor, raw_, name, allocator, &value));
    const Owned owner{value, ort::kReleaseValue};
    const Tensor t = tensor_of(value);
    if (t.type != ort::kUint8) return {};
    return {t.as<uint8_t>(), t.as<uint8_t>() + t.count()};
  }

  size_t inputs() const {
    size_t count = 0;
    ort::check(ort::call(ort::kKernelInfoGetInputCount, raw_, &count));
    return count;
  }

  size_t outputs() const {
    size_t count = 0;
    ort::check(ort::call(ort::kKernelInfoGetOutputCount, raw_, &count));
    return count;
  }

  // An initializer; no data if the input isn't one.
  Tensor constant(size_t index) const {
    int is_constant = 0;
    const void* value = nullptr;
    ort::check(ort::call(ort::kKernelInfoGetConstantInputTensor, raw_, index, &is_constant, &value));
    return is_constant != 0 && value != nullptr ? tensor_of(value) : Tensor();
  }

 private:
  const void* raw_;
};

}  // namespace edgeformer
