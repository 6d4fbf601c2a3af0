// edgeformer::Encoder(inputs..., weights...; program) -> outputs [B, T, width] or [B, width]
//
// A whole encoder. Padding is left out of all computation; its rows in the outputs are zeros.
#pragma once
#include <mutex>
#include <stdexcept>

#include "encoder.h"
#include "ort_pool.h"
#include "ort_program.h"

namespace edgeformer {

class OrtEncoder {
 public:
  static constexpr const char* kName = "Encoder";

  explicit OrtEncoder(const Info& info) : program_(info), encoder_(program_.model(), crew_, program_.io().slots) {
    const OrtProgram::Io& io = program_.io();
    if (io.ids < 0 || io.mask < 0 || program_.model().outs.empty() || io.outs.size() != program_.model().outs.size())
      throw std::runtime_error("edgeformer::Encoder: the attribute 'program' is not an encoder's");
  }

  void compute(const Context& context) {
    std::lock_guard<std::mutex> one_at_a_time(mutex_);  // sessions may run on several threads
    const OrtProgram::Io& io = program_.io();
    const Tensor ids = integers(context, io.ids, "input_ids", 2), mask = integers(context, io.mask, "attention_mask", 2);
    Tensor types;
    if (io.types >= 0) types = integers(context, io.types, "token_type_ids", 2);
    if (mask.shape != ids.shape || (io.types >= 0 && types.shape != ids.shape))
      throw std::runtime_error("edgeformer::Encoder: attention_mask and token_type_ids must be shaped like input_ids");
    const int64_t count = ids.shape[0], length = ids.shape[1];
    std::vector<float*> outs;
    for (size_t n = 0; n < io.outs.size(); ++n) {
      const Out& out = program_.model().outs[n];
      std::vector<int64_t> shape{count, length, out.width};
      if (out.kept) shape.erase(shape.begin() + 1);
      outs.push_back(static_cast<float*>(context.output(static_cast<size_t>(io.outs[n]), shape)));
    }
    if (count == 0 || length == 0) return;
    if (length > int64_t{1} << 24) throw std::runtime_error("edgeformer::Encoder: the texts are too long");
    program_.cover(length);
    crew_.context = &context;
    encoder_.run({ids.as<int64_t>(), mask.as<int64_t>(), io.types < 0 ? nullptr : types.as<int64_t>(), count, length, outs.data()},
                 std::min(program_.limit(), program_.covered()));
  }

 private:
  OrtProgram program_;
  PoolCrew crew_;
  Encoder encoder_;
  std::mutex mutex_;  // of a run
};

}  // namespace edgeformer
