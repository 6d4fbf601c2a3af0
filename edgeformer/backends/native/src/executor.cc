// One forward pass: every thread runs the same instructions, each of which is one or two phases of chunks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace edgeformer {

Executor::Executor(const Model& model, Crew& crew) : model_(model), crew_(crew) {
  for (const Instruction& i : model.program) {
    if (i.op != Op::kAttend) continue;
    const int64_t group = i.count / i.heads;
    if (std::none_of(blocks_.begin(), blocks_.end(), [&](const Blocks& b) { return b.group == group; })) blocks_.push_back({group, {}});
  }
}

// Where each sequence's rows and cached keys lie, and how attentions cut the rows.
void Executor::arrange() {
  sequences_.clear();
  int64_t row = 0, slot = 0;
  for (int64_t b = 0; b < batch_; ++b) {
    const int64_t count = in_.lengths != nullptr ? in_.lengths[b] : in_.count;
    const int64_t capacity = in_.lengths != nullptr ? whole_vectors(count) : layout_.capacity;
    sequences_.push_back({row, count, slot, capacity});
    row += count, slot += capacity;
  }
  rows_ = row;
  sequence_of_.resize(static_cast<size_t>(rows_));
  for (int64_t b = 0; b < batch_; ++b) {
    const Sequence& s = sequences_[static_cast<size_t>(b)];
    std::fill_n(sequence_of_.begin() + s.row, s.count, static_cast<int32_t>(b));
  }
  for (Blocks& blocks : blocks_) {
    blocks.list.clear();
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t first = 0; first < sequences_[static_cast<size_t>(b)].count; first += rows_per_block(blocks.group)) blocks.list.push_back({b, first});
  }
}

// Makes room for the activations of `rows` rows, and for the partial results of their attentions.
void Executor::reserve(int64_t rows) {
  if (rows > rows_held_) {
    size_t floats = 0, groups = 0;
    auto whole = [](int64_t n) { return static_cast<size_t>((n + 31) / 32 * 32); };
    for (int32_t w : model_.widths) floats += whole(w) * static_cast<size_t>(rows), groups += whole(w) / 32 * static_cast<size_t>(rows);
    activations_ = Memory(floats * 5 + groups * 8 + 4096);
    uint8_t* p = activations_.data();
    buffers_.clear();
    for (int32_t w : model_.widths) {
      const size_t width = whole(w), n = width * static_cast<size_t>(rows);
      Buffer b{};
      b.width = static_cast<int64_t>(width), b.groups = static_cast<int64_t>(width / 32);
      b.x = reinterpret_cast<float*>(p), p += n * 4;
      b.scales = reinterpret_cast<float*>(p), p += n / 8;
      b.sums = reinterpret_cast<int32_t*>(p), p += n / 8;
      b.codes = reinterpret_cast<int8_t*>(p), p += n;
      buffers_.push_back(b);
    }
    rows_held_ = rows;
  }
  size_t most = 0, pairs = 0;
  for (const Instruction& i : model_.program) {
    if (i.op != Op::kAttend) continue;
    const size_t n = static_cast<size_t>(rows * i.count * cut(i).splits);
    pairs = std::max(pairs, n);
    most = std::max(most, n * static_cast<size_t>(whole_vectors(i.value_dim)));
  }
  if (most + 2 * pairs > partials_held_) {
    partial_ = Memory((most + 2 * pairs) * 4);
    partials_held_ = most + 2 * pairs;
  }
  outputs_ = reinterpret_cast<float*>(partial_.data());
  maxima_ = outputs_ + most;
  totals_ = maxima_ + pairs;
}

Rows Executor::rows_of(int32_t buffer, int32_t column) const {
  const Buffer& b = buffers_[static_cast<size_t>(buffer)];
  return {b.x + column, b.width, b.codes + column, b.scales + column / 32, b.sums + column / 32, b.width, b.groups};
}

void Executor::quantize(const Instruction& i, int64_t row, int64_t column, int64_t count) const {
  const Buffer& b = buffers_[static_cast<size_t>(i.dst)];
  const int64_t group = row * b.groups + column / kGroup;
  model_.kernels->quantize(b.x + row * b.width + column, count,
                           {b.codes + row * b.width + column, b.scales + group, b.sums + group});
}

void Executor::product(const Instruction& i, uint32_t& number) {
  const Matrix& m = model_.matrices[static_cast<size_t>(i.matrix)];
  const bool glu = i.op == Op::kGlu;
  const int64_t rows = i.kept != 0 ? kept_ : rows_, units = glu ? m.tile_count / 2 : m.tile_count;
  if (rows == 0) return;
  const Rows in = rows_of(i.src, i.src_at);
  float* out = at(i.dst, i.dst_at, 0);
  const int64_t stride = i.dst >= 0 ? buffers_[static_cast<size_t>(i.dst)].width : model_.vocab;
  const int64_t size = std::max<int64_t>((units / (4 * threads_) + 1) / 2 * 2, 2);  // whole groups of 32 outputs
  phase(number, (units + size - 1) / size, [&](uint32_t chunk) {
    const int64_t first = chunk * size, end = std::min(first + size, units);
    const Act act = static_cast<Act>(i.act);
    if (glu)
      model_.kernels->glu(m, first, end, in, 0, rows, out, stride, vector(i.weight), vector(i.bias), act);
    else
      model_.kernels->linear(m, first, end, in, 0, rows, out, stride, vector(i.bias), act);
    if (i.quantize != 0)
      for (int64_t r = 0; r < rows; ++r) quantize(i, r, i.dst_at + first * kLanes, (end - first) * kLanes);
  });
}

// A chunk is some tiles of one head.
void Executor::maps(const Instruction& i, uint32_t& number) {
  const Matrix* first = &model_.matrices[static_cast<size_t>(i.matrix)];
  const int64_t rows = i.kept != 0 ? kept_ : rows_, size = std::max<int64_t>(first->tile_count * i.heads / (4 * threads_), 2) / 2 * 2;
  if (rows == 0) return;
  const int64_t pieces = (first->tile_count + size - 1) / size, stride = buffers_[static_cast<size_t>(i.dst)].width;
  phase(number, i.heads * pieces, [&](uint32_t chunk) {
    const int32_t h = static_cast<int32_t>(chunk / pieces);
    const int64_t tile = chunk % pieces * size;
    model_.kernels->linear(first[h], tile, std::min(tile + size, first->tile_count), rows_of(i.src, i.src_at + h * i.src_step), 0,
                           rows, at(i.dst, i.dst_at + h * i.dst_step, 0), stride, nullptr, Act::kNone);
  });
  if (i.quantize != 0) by_rows(number, rows, [&](int64_t r) { quantize(i, r, i.dst_at, int64_t{i.heads} * i.dst_step); });
}

void Executor::work(int thread) {
  using Clock = std::chrono::steady_clock;
  uint32_t number = first_phase_;
  int64_t units = 0;
  if (in_.start > 0)
    for (size_t n = 0; n < model_.caches.size(); ++n) units += caches_[n].past_keys != nullptr ? batch_ * model_.caches[n].heads : 0;
  phase(number, units, [&](uint32_t head) { copy_past(head); });
  Clock::time_point before = profile_ != nullptr ? Clock::now() : Clock::time_point();
  for (size_t n = 0; n < model_.program.size(); ++n) {
    const Instruction& i = model_.program[n];
    const int64_t rows = i.kept != 0 ? kept_ : rows_;
    switch (i.op) {
      case Op::kLinear:
      case Op::kGlu: product(i, number); break;
      case Op::kMoe: experts(i, number); break;
      case Op::kMaps: maps(i, number); break;
      case Op::kAppend:
        phase(number, (rows + kLanes - 1) / kLanes, [&](uint32_t block) { append(i, block); });
        break;
      case Op::kAttend: {
        const Cut c = cut(i);
        phase(number, i.heads * static_cast<int64_t>(c.blocks->size()) * c.splits, [&](uint32_t chunk) { attend(i, c, chunk); });
        if (!c.whole) by_rows(number, rows, [&](int64_t r) { merge(i, c, r, 0, i.count); });
        break;
      }
      default: by_rows(number, rows, [&](int64_t r) { row(i, r); });
    }
    if (profile_ != nullptr && thread == 0) {
      const Clock::time_point now = Clock::now();
      profile_[n] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - before).count();
      before = now;
    }
  }
}

void Executor::step(const Inputs& inputs, int64_t batch, int64_t positions, const CacheView* caches, const CacheLayout& layout) {
  if (inputs.count <= 0 || inputs.start < 0 || inputs.start + inputs.count > layout.capacity || inputs.keep < 0 ||
      inputs.keep > inputs.count)
    throw std::invalid_argument("the new tokens don't fit the cache");
  in_ = inputs;
  batch_ = batch;
  layout_ = layout;
  for (int64_t b = 0; b < batch && in_.lengths != nullptr; ++b)
    if (in_.lengths[b] <= 0 || in_.lengths[b] > in_.count || in_.keep > in_.lengths[b]) throw std::invalid_argument("a sequence has no tokens, or too many");
  if ((in_.outs == nullptr) != model_.outs.empty() || (!model_.outs.empty() && in_.keep != 1) || (model_.types > 0 && in_.types == nullptr))
    throw std::invalid_argument("the model needs arrays for its outputs, and token types");
  if ((layout.kind == CacheKind::kI8) != model_.has_codes && !model_.caches.empty()) throw std::invalid_argument("a cache of codes needs a model with its scales");
  arrange();
  for (int64_t r = 0; r < rows_; ++r)
    if (inputs.ids[r] < 0 || inputs.ids[r] >= model_.vocab || inputs.positions[r] < 0 || inputs.positions[r] >= positions ||
        (model_.types > 0 && (inputs.types[r] < 0 || inputs.types[r] >= model_.types)))
      throw std::invalid_argument("a token id, type or position is out of range");
  caches_ = caches;
  threads_ = crew_.size();
  kept_ = batch * inputs.keep;
  reserve(rows_);
  first_phase_ = phases_.current();
  crew_.run([this](int thread) { work(thread); });
}

}  // namespace edgeformer
