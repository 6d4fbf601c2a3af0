// Sequences that own their caches and threads.
#include <stdexcept>

#include "engine.h"

namespace edgeformer {

void check_tables(const Model& model, int64_t positions) {
  for (const Instruction& i : model.program) {
    if ((i.op == Op::kAppend || i.op == Op::kHeads) && i.table >= 0 &&
        static_cast<int64_t>(model.vectors[static_cast<size_t>(i.table)].size()) < positions * i.rotated)
      throw std::invalid_argument("the model's table of rotations is shorter than the session's capacity");
    if (i.op == Op::kLookup && model.matrices[static_cast<size_t>(i.matrix)].rows < positions + i.count)
      throw std::invalid_argument("the model's table of positions is shorter than the session's capacity");
  }
}

Session::Session(const Model& model, int64_t batch, int64_t capacity, int threads, CacheKind cache)
    : batch_(batch),
      capacity_(capacity),
      layout_{cache, true, whole_vectors(capacity)},
      team_(threads),
      executor_(model, team_) {
  if (batch <= 0 || capacity <= 0 || threads <= 0) throw std::invalid_argument("batch, capacity and threads must be positive");
  check_tables(model, capacity);
  // All caches in one piece: a piece of its own each would waste most of a 2 MB page.
  const size_t bytes = bytes_of(cache);
  std::vector<size_t> starts;
  size_t total = 0;
  for (const CacheShape& c : model.caches)
    for (int64_t dim : {int64_t{c.key_dim()}, whole_vectors(c.value_dim)}) {
      starts.push_back(total);
      total += (static_cast<size_t>(batch * c.heads * layout_.capacity * dim) * bytes + 127) / 128 * 128;
    }
  memory_ = Memory(total);
  for (size_t n = 0; n < model.caches.size(); ++n)
    caches_.push_back({memory_.data() + starts[2 * n], memory_.data() + starts[2 * n + 1]});
}

void Session::step(const Inputs& inputs) {
  std::lock_guard<std::mutex> one_at_a_time(mutex_);
  if (inputs.start + inputs.count > capacity_) throw std::invalid_argument("the new tokens don't fit the cache");
  executor_.step(inputs, batch_, capacity_, caches_.data(), layout_);
}

}  // namespace edgeformer
