// The op library: registers edgeformer's kernels in the domain `edgeformer`. A kernel here replaces a model's function body
// of the same name; ops without a kernel keep their bodies.
#include <exception>
#include <new>

#include "glu_ffn.h"
#include "rms_norm.h"

namespace ort {
const void* const* api = nullptr;
}

namespace {

// An OrtCustomOp around a struct with kName, kInputs, create(info) and compute(context). One float32 output.
template <typename Kernel>
const ort::CustomOp* custom_op() {
  static ort::CustomOp op = [] {
    ort::CustomOp o{};
    o.version = ort::kApiVersion;
    o.GetName = [](const ort::CustomOp*) { return Kernel::kName; };
    o.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    o.GetInputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    o.GetInputTypeCount = [](const ort::CustomOp*) { return Kernel::kInputs; };
    o.GetOutputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    o.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
    o.GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };   // required
    o.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return 0; };  // required
    o.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
    o.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
    o.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 1; };
    o.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
    o.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
    o.CreateKernelV2 = [](const ort::CustomOp*, const void*, const void* info, void** kernel) -> ort::Status {
      auto* made = new (std::nothrow) Kernel();
      if (made == nullptr) return ort::error("edgeformer: out of memory");
      if (ort::Status status = made->create(info)) {
        delete made;
        return status;
      }
      *kernel = made;
      return nullptr;
    };
    o.KernelComputeV2 = [](void* kernel, void* context) -> ort::Status {
      try {  // no exception may cross the C ABI
        static_cast<const Kernel*>(kernel)->compute(edgeformer::Context(context));
        return nullptr;
      } catch (const std::exception& e) {
        return ort::error(e.what());
      }
    };
    o.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return o;
  }();
  return &op;
}

}  // namespace

extern "C" ORT_EXPORT ort::Status ORT_CALL RegisterCustomOps(void* session_options, const ort::ApiBase* base) {
  ort::api = base->get_api(ort::kApiVersion);
  if (ort::api == nullptr) return nullptr;  // ONNX Runtime older than 1.17: function bodies are used
  static void* domain = nullptr;
  if (domain == nullptr) {
    if (ort::Status status = ort::call(ort::kCreateCustomOpDomain, "edgeformer", &domain)) return status;
    for (const ort::CustomOp* op : {custom_op<edgeformer::RMSNorm>(), custom_op<edgeformer::GluFfn>()})
      if (ort::Status status = ort::call(ort::kCustomOpDomainAdd, domain, op)) return status;
  }
  return ort::call(ort::kAddCustomOpDomain, session_options, domain);
}
