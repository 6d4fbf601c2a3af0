// The part of ONNX Runtime's C ABI that a custom-op library needs, declared here so that no ONNX Runtime headers are needed.
//
// OrtApi is a table of function pointers that only grows at its end, so slot numbers are stable; OrtCustomOp is a struct of
// 26 words as of API version 17. tests/test_kernels.py checks the slot numbers against the real headers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#define ORT_EXPORT __declspec(dllexport)
#else
#define ORT_CALL
#define ORT_EXPORT __attribute__((visibility("default")))
#endif

namespace ort {

using Status = void*;  // nullptr means success

struct ApiBase {
  const void* const*(ORT_CALL* get_api)(uint32_t version);
  const char*(ORT_CALL* get_version)();
};

constexpr uint32_t kApiVersion = 17;  // ONNX Runtime 1.17: the first with ParallelFor and shape inference

enum Slot : int {
  kCreateStatus = 0,
  kGetErrorMessage = 2,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kGetAllocatorWithDefaultOptions = 78,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInputCount = 88,
  kKernelContextGetOutputCount = 89,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseValue = 96,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelInfoGetInputCount = 230,
  kKernelInfoGetOutputCount = 231,
  kKernelInfoGetAttributeTensor = 236,
  kKernelInfoGetConstantInputTensor = 249,
  kKernelContextParallelFor = 274,
};

enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kBfloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

struct CustomOp {
  uint32_t version;
  void*(ORT_CALL* CreateKernel)(const CustomOp*, const void* api, const void* info);
  const char*(ORT_CALL* GetName)(const CustomOp*);
  const char*(ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  int(ORT_CALL* GetInputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetInputTypeCount)(const CustomOp*);
  int(ORT_CALL* GetOutputType)(const CustomOp*, size_t);
  size_t(ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(ORT_CALL* KernelCompute)(void*, void* context);
  void(ORT_CALL* KernelDestroy)(void*);
  int(ORT_CALL* GetInputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetOutputCharacteristic)(const CustomOp*, size_t);
  int(ORT_CALL* GetInputMemoryType)(const CustomOp*, size_t);
  int(ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status(ORT_CALL* CreateKernelV2)(const CustomOp*, const void* api, const void* info, void** kernel);
  Status(ORT_CALL* KernelComputeV2)(void*, void* context);
  Status(ORT_CALL* InferOutputShape)(const CustomOp*, void* context);
  int(ORT_CALL* GetStartVersion)(const CustomOp*);
  int(ORT_CALL* GetEndVersion)(const CustomOp*);
  size_t(ORT_CALL* GetMayInplace)(int**, int**);
  void(ORT_CALL* ReleaseMayInplace)(int*, int*);
  size_t(ORT_CALL* GetAliasMap)(int**, int**);
  void(ORT_CALL* ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 words");

extern const void* const* api;

// Calls the function in a slot of the table.
template <typename... Args>
Status call(Slot slot, Args... args) {
  return reinterpret_cast<Status(ORT_CALL*)(Args...)>(const_cast<void*>(api[slot]))(args...);
}

inline Status error(const char* message) {
  return reinterpret_cast<Status(ORT_CALL*)(int, const char*)>(const_cast<void*>(api[kCreateStatus]))(1, message);
}

template <typename Object>
void release(Slot slot, Object* object) {
  reinterpret_cast<void(ORT_CALL*)(Object*)>(const_cast<void*>(api[slot]))(object);
}

// Throws what a failed call says.
inline void check(Status status) {
  if (status == nullptr) return;
  const char* text = reinterpret_cast<const char*(ORT_CALL*)(Status)>(const_cast<void*>(api[kGetErrorMessage]))(status);
  const std::string message = text == nullptr ? "a call into ONNX Runtime failed" : text;
  release(kReleaseStatus, status);
  throw std::runtime_error(message);
}

}  // namespace ort
