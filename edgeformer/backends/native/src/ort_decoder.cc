#include "ort_decoder.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace edgeformer {

DecoderBase::DecoderBase(const Info& info, int cache_type) : cache_type_(cache_type), program_(info), executor_(program_.model(), crew_) {
  const OrtProgram::Io& io = program_.io();
  bool whole = io.ids >= 0 && io.mask >= 0 && io.keep >= 0 && program_.model().outs.empty() && program_.model().types == 0;
  for (const OrtProgram::CacheIo& c : io.caches) whole = whole && c.past_keys >= 0 && c.past_values >= 0 && c.keys > 0 && c.values > 0;
  if (!whole) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is not a decoder's");
}

void DecoderBase::compute(const Context& context) {
  std::lock_guard<std::mutex> one_at_a_time(mutex_);  // sessions may run on several threads
  const OrtProgram::Io& io = program_.io();
  const Model& model = program_.model();
  const Tensor ids = integers(context, io.ids, "input_ids", 2), mask = integers(context, io.mask, "attention_mask", 2);
  const int64_t batch = ids.shape[0], count = ids.shape[1], total = mask.shape[1], start = total - count;
  if (batch <= 0 || count <= 0 || mask.shape[0] != batch || start < 0)
    throw std::runtime_error("edgeformer::Decoder: attention_mask must be [batch, past + new], as long as past and input_ids together");
  const Tensor keep = integers(context, io.keep, "num_logits_to_keep", 1);
  const int64_t wanted = keep.count() == 1 ? keep.as<int64_t>()[0] : -1, kept = wanted == 0 ? count : std::min(wanted, count);
  if (wanted < 0) throw std::runtime_error("edgeformer::Decoder: num_logits_to_keep must be one number, 0 or more");

  // where masks count each token, and where tables do
  std::vector<int32_t> counted, positions(static_cast<size_t>(batch * count)), queries(positions.size());
  std::vector<uint8_t> valid;
  const int64_t* m = mask.as<int64_t>();
  if (!std::all_of(m, m + batch * total, [](int64_t x) { return x == 1; })) {
    counted.resize(static_cast<size_t>(batch * total)), valid.resize(counted.size());
    for (int64_t b = 0; b < batch; ++b) {
      int64_t seen = -1;
      for (int64_t i = b * total; i < (b + 1) * total; ++i) {
        seen += m[i];
        counted[static_cast<size_t>(i)] = static_cast<int32_t>(seen);
        valid[static_cast<size_t>(i)] = m[i] != 0;
      }
    }
  }
  int64_t furthest = 0;
  Tensor given;
  if (io.positions >= 0) {
    given = integers(context, io.positions, "position_ids", 2);
    if (given.shape != ids.shape) throw std::runtime_error("edgeformer::Decoder: position_ids must be shaped like input_ids");
  }
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < count; ++i) {
      const size_t at = static_cast<size_t>(b * count + i);
      queries[at] = counted.empty() ? static_cast<int32_t>(start + i) : counted[static_cast<size_t>(b * total + start + i)];
      const int64_t position = given.data != nullptr ? given.as<int64_t>()[at] : queries[at];
      positions[at] = static_cast<int32_t>(std::clamp<int64_t>(position, 0, INT32_MAX / 4));
      furthest = std::max<int64_t>(furthest, positions[at]);
    }
  if (furthest >= program_.limit()) throw std::runtime_error("edgeformer::Decoder: a position is beyond the model's table of positions");
  if (furthest > std::max<int64_t>(total, program_.covered()) + (int64_t{1} << 20)) throw std::runtime_error("edgeformer::Decoder: a position is out of range");
  program_.cover(furthest + 1);
  program_.cover_in(furthest + 1, positions);
  std::vector<int32_t> prefix;
  if (io.prefix >= 0) {
    const Tensor lengths = integers(context, io.prefix, "prefix_length", 1);
    if (lengths.count() != batch) throw std::runtime_error("edgeformer::Decoder: prefix_length must be [batch]");
    for (int64_t b = 0; b < batch; ++b) prefix.push_back(static_cast<int32_t>(std::clamp<int64_t>(lengths.as<int64_t>()[b], 0, total)));
  }

  CacheLayout layout{cache_type_ == ort::kFloat ? CacheKind::kF32 : cache_type_ == ort::kInt8 ? CacheKind::kI8 : CacheKind::kF16, false, total};
  std::vector<CacheView> views;
  bool in_place = false;
  for (size_t n = 0; n < io.caches.size(); ++n) {
    const CacheShape& shape = model.caches[n];
    const OrtProgram::CacheIo& cache = io.caches[n];
    auto past = [&](int32_t index, int64_t dim) {
      const Tensor t = context.input(static_cast<size_t>(index));
      if (t.type != cache_type_ || t.shape.size() != 4 || t.shape[0] != batch || t.shape[1] != shape.heads || t.shape[3] != dim ||
          t.shape[2] < start)
        throw std::runtime_error("edgeformer::Decoder: past keys and values must be [batch, heads, past or more, dim]");
      if (index == io.caches[0].past_keys) layout.past_capacity = t.shape[2];
      if (t.shape[2] != layout.past_capacity) throw std::runtime_error("edgeformer::Decoder: past keys and values differ in length");
      return t;
    };
    const Tensor keys = past(cache.past_keys, shape.key_dim()), values = past(cache.past_values, shape.value_dim);
    layout.capacity = std::max(layout.past_capacity, total);
    const std::vector<int64_t> key_shape{batch, shape.heads, layout.capacity, shape.key_dim()};
    const std::vector<int64_t> value_shape{batch, shape.heads, layout.capacity, shape.value_dim};
    CacheView view;
    view.keys = static_cast<uint8_t*>(context.output(static_cast<size_t>(cache.keys), key_shape));
    view.values = static_cast<uint8_t*>(context.output(static_cast<size_t>(cache.values), value_shape));
    if (n == 0) in_place = view.keys == keys.data;
    if (in_place != (view.keys == keys.data) || in_place != (view.values == values.data))
      throw std::runtime_error("edgeformer::Decoder: bind all keys and values in place, or none");
    if (!in_place) view.past_keys = keys.as<uint8_t>(), view.past_values = values.as<uint8_t>();  // null where they are empty
    views.push_back(view);
  }
  float* logits = static_cast<float*>(context.output(0, {batch, kept, model.vocab}));
  crew_.context = &context;
  executor_.step({ids.as<int64_t>(), positions.data(), queries.data(), counted.empty() ? nullptr : counted.data(),
                   valid.empty() ? nullptr : valid.data(), prefix.empty() ? nullptr : prefix.data(), start, count, kept, logits},
                  batch, program_.covered(), views.data(), layout);
}

}  // namespace edgeformer
