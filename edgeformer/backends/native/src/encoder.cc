#include "encoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace edgeformer {

namespace {

constexpr size_t kRowsAtOnce = 1024;  // enough for whole tiles of a product, few enough for the processor's caches

}  // namespace

Encoder::Encoder(const Model& model, Crew& crew, bool slots) : model_(model), slots_(slots), executor_(model, crew) {
  for (const Instruction& i : model.program) takes_first_ = takes_first_ || (i.op == Op::kPool && i.count == 0);
}

void Encoder::run(const Texts& texts, int64_t positions) {
  clear();  // of what a run that failed has left
  if (texts.count <= 0 || texts.length <= 0) throw std::invalid_argument("there are no tokens");
  if (slots_ && texts.length > positions) throw std::invalid_argument("a text is longer than the model's table of positions");
  const int64_t all = texts.count * texts.length;
  if (std::any_of(texts.mask, texts.mask + all, [](int64_t m) { return m == 0; }))
    for (size_t n = 0; n < model_.outs.size(); ++n) {
      const Out& out = model_.outs[n];
      std::memset(texts.outs[n], 0, static_cast<size_t>((out.kept ? texts.count : all) * out.width) * 4);
    }
  for (int64_t text = 0; text < texts.count; ++text) {
    const int64_t* mask = texts.mask + text * texts.length;
    const size_t tokens = static_cast<size_t>(std::count_if(mask, mask + texts.length, [](int64_t m) { return m != 0; }));
    if (tokens == 0) continue;
    if (!ids_.empty() && ids_.size() + tokens > kRowsAtOnce) flush(texts, positions);
    add(texts, text);
  }
  if (!ids_.empty()) flush(texts, positions);
}

void Encoder::add(const Texts& texts, int64_t text) {
  const int64_t first = text * texts.length;
  const size_t before = ids_.size();
  int32_t counted = -1;
  for (int64_t slot = 0; slot < texts.length; ++slot) {
    const bool real = texts.mask[first + slot] != 0;
    counted += real;
    if (!real && !(takes_first_ && slot == 0)) continue;
    const int32_t position = slots_ ? static_cast<int32_t>(slot) : counted;
    in_order_ = in_order_ && position == static_cast<int32_t>(ids_.size() - before);
    whole_ = whole_ && real;
    ids_.push_back(texts.ids[first + slot]);
    places_.push_back(first + slot);
    positions_.push_back(std::max(position, 0));
    queries_.push_back(position);
    valid_.push_back(real);
    if (texts.types != nullptr) types_.push_back(static_cast<int32_t>(std::clamp<int64_t>(texts.types[first + slot], -1, INT32_MAX)));
  }
  lengths_.push_back(static_cast<int64_t>(ids_.size() - before));
  text_places_.push_back(text);
}

void Encoder::flush(const Texts& texts, int64_t positions) {
  int64_t slots = 0;
  for (int64_t length : lengths_) slots += whole_vectors(length);
  auto bytes = [&](const CacheShape& c, int64_t dim) { return (static_cast<size_t>(slots * c.heads * dim) * 4 + 127) / 128 * 128; };
  size_t total = 0;
  for (const CacheShape& c : model_.caches) total += bytes(c, c.key_dim()) + bytes(c, whole_vectors(c.value_dim));
  if (total > held_) memory_ = Memory(total), held_ = total;
  caches_.clear();
  uint8_t* at = memory_.data();
  for (const CacheShape& c : model_.caches) {
    caches_.push_back({at, at + bytes(c, c.key_dim())});
    at += bytes(c, c.key_dim()) + bytes(c, whole_vectors(c.value_dim));
  }
  Inputs inputs{};
  inputs.ids = ids_.data();
  inputs.positions = positions_.data();
  inputs.query_positions = queries_.data();
  inputs.key_positions = in_order_ ? nullptr : queries_.data();
  inputs.valid = whole_ ? nullptr : valid_.data();
  inputs.count = *std::max_element(lengths_.begin(), lengths_.end());
  inputs.keep = 1;
  inputs.lengths = lengths_.data();
  inputs.types = types_.empty() ? nullptr : types_.data();
  inputs.outs = texts.outs;
  inputs.places = places_.data();
  inputs.text_places = text_places_.data();
  const int64_t count = static_cast<int64_t>(lengths_.size());
  executor_.step(inputs, count, positions, caches_.data(), {CacheKind::kF32, true, whole_vectors(inputs.count)});
  clear();
}

void Encoder::clear() {
  for (auto* v : {&ids_, &places_, &lengths_, &text_places_}) v->clear();
  for (auto* v : {&positions_, &queries_, &types_}) v->clear();
  valid_.clear();
  whole_ = in_order_ = true;
}

EncoderSession::EncoderSession(const Model& model, int64_t positions, bool slots, int threads)
    : positions_(positions), team_(threads), encoder_(model, team_, slots) {
  if (positions <= 0 || threads <= 0) throw std::invalid_argument("positions and threads must be positive");
  check_tables(model, positions);
}

void EncoderSession::run(const Texts& texts) {
  std::lock_guard<std::mutex> one_at_a_time(mutex_);
  encoder_.run(texts, positions_);
}

}  // namespace edgeformer
