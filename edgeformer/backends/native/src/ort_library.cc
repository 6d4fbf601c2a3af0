// The op library: registers edgeformer's kernels in the domain `edgeformer` of ONNX Runtime. A kernel here replaces a model's
// function body of the same name; ops without a kernel keep their bodies.
#include <exception>
#include <memory>
#include <mutex>

#include "ort_decoder.h"
#include "ort_encoder.h"
#include "ort_glu_ffn.h"
#include "ort_rms_norm.h"

namespace ort {
const void* const* api = nullptr;
}

namespace {

// Creation, computation and deletion of a struct with a constructor from Info and compute(Context).
template <typename Kernel>
ort::CustomOp made_from() {
  ort::CustomOp o{};
  o.version = ort::kApiVersion;
  o.GetName = [](const ort::CustomOp*) { return Kernel::kName; };
  o.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  o.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
  o.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
  o.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };  // inputs may differ in type
  o.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  o.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 1; };
  o.CreateKernelV2 = [](const ort::CustomOp*, const void*, const void* info, void** kernel) -> ort::Status {
    try {  // no exception may cross the C ABI
      *kernel = new Kernel(edgeformer::Info(info));
      return nullptr;
    } catch (const std::exception& e) {
      return ort::error(e.what());
    }
  };
  o.KernelComputeV2 = [](void* kernel, void* context) -> ort::Status {
    try {
      static_cast<Kernel*>(kernel)->compute(edgeformer::Context(context));
      return nullptr;
    } catch (const std::exception& e) {
      return ort::error(e.what());
    }
  };
  o.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return o;
}

// An op with float32 inputs and one float32 output.
template <typename Kernel>
const ort::CustomOp* op() {
  static ort::CustomOp made = [] {
    ort::CustomOp o = made_from<Kernel>();
    o.GetInputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    o.GetInputTypeCount = [](const ort::CustomOp*) { return Kernel::kInputs; };
    o.GetOutputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    o.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
    o.GetInputCharacteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
    o.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
    return o;
  }();
  return &made;
}

// A whole model: any inputs; one float32 output, then outputs of a type, or float32 outputs alone if that is undefined.
template <typename Kernel, int kLater>
const ort::CustomOp* whole_model() {
  static ort::CustomOp made = [] {
    ort::CustomOp o = made_from<Kernel>();
    o.GetInputType = [](const ort::CustomOp*, size_t) -> int { return ort::kUndefined; };
    o.GetInputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
    o.GetOutputType = [](const ort::CustomOp*, size_t i) -> int { return i == 0 ? ort::kFloat : kLater; };
    o.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return kLater == ort::kUndefined ? 1 : 2; };
    o.GetInputCharacteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kVariadic; };
    o.GetOutputCharacteristic = [](const ort::CustomOp*, size_t i) -> int { return i == 0 && kLater != ort::kUndefined ? ort::kRequired : ort::kVariadic; };
    return o;
  }();
  return &made;
}

}  // namespace

extern "C" ORT_EXPORT ort::Status ORT_CALL RegisterCustomOps(void* session_options, const ort::ApiBase* base) {
  using namespace edgeformer;
  ort::api = base->get_api(ort::kApiVersion);
  if (ort::api == nullptr) return nullptr;  // ONNX Runtime older than 1.17: function bodies are used
  static void* domain = nullptr;
  static std::mutex mutex;
  std::lock_guard<std::mutex> one_at_a_time(mutex);
  if (domain == nullptr) {
    void* made = nullptr;
    if (ort::Status status = ort::call(ort::kCreateCustomOpDomain, "edgeformer", &made)) return status;
    for (const ort::CustomOp* o : {op<RMSNorm>(), op<GluFfn>(), whole_model<Decoder, Decoder::kCacheType>(),
                               whole_model<DecoderF16, DecoderF16::kCacheType>(), whole_model<DecoderI8, DecoderI8::kCacheType>(),
                               whole_model<OrtEncoder, ort::kUndefined>()})
      if (ort::Status status = ort::call(ort::kCustomOpDomainAdd, made, o)) return status;
    domain = made;
  }
  return ort::call(ort::kAddCustomOpDomain, session_options, domain);
}
