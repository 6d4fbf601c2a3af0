// One forward pass: every thread runs the same instructions, each of which is one or two phases of chunks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace edgeformer {

Executor::Cut Executor::cut(const Instruction& i) const {
  const int64_t group = i.count / i.heads, keys = in_.start + in_.count;
  Cut c;
  c.row_block = std::min<int64_t>(in_.count, std::max<int64_t>(kPairs / group, 1));
  c.blocks = (in_.count + c.row_block - 1) / c.row_block;
  // not by the number of threads: the order of sums, and so the result, must not depend on it
  constexpr int64_t kWanted = 16;
  const int64_t units = batch_ * i.heads * c.blocks, most = (keys + kKeyBlock - 1) / kKeyBlock;  // at least a block of keys each
  c.splits = units >= kWanted ? 1 : std::min(most, (kWanted + units - 1) / units);
  c.keys_per_split = ((keys + c.splits - 1) / c.splits + kLanes - 1) / kLanes * kLanes;
  c.splits = (keys + c.keys_per_split - 1) / c.keys_per_split;
  c.whole = c.splits == 1 && (i.quantize == 0 || group * i.value_dim % kGroup == 0);
  return c;
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
    partials_held_ = most + 2 * pairs;
    partial_ = Memory(partials_held_ * 4);
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

namespace {

size_t bytes_of(CacheKind kind) { return kind == CacheKind::kF16 ? 2 : 4; }

// Rotates heads in place by a position's cosines and sines.
void rotate(const Instruction& i, const float* angles, float* x, int32_t heads) {
  const int32_t half = i.rotated / 2, next = i.interleaved != 0 ? 1 : half, step = i.interleaved != 0 ? 2 : 1;
  const float *cos = angles, *sin = angles + half;
  for (int32_t h = 0; h < heads; ++h, x += i.dim)
    for (int32_t n = 0; n < half; ++n) {
      const float a = x[n * step], b = x[n * step + next];
      x[n * step] = a * cos[n] - b * sin[n];
      x[n * step + next] = b * cos[n] + a * sin[n];
    }
}

}  // namespace

// Whatever works on one row.
void Executor::row(const Instruction& i, int64_t r) {
  const Kernels& k = *model_.kernels;
  float* y = at(i.dst, i.dst_at, r);
  switch (i.op) {
    case Op::kEmbed:
    case Op::kLookup: {
      const Matrix& m = model_.matrices[static_cast<size_t>(i.matrix)];
      k.row(m, i.op == Op::kEmbed ? in_.ids[r] : in_.positions[r] + i.count, y);
      if (i.scale != 1)
        for (int32_t n = 0; n < i.width; ++n) y[n] *= i.scale;
      break;
    }
    case Op::kAdd:
    case Op::kMul: {
      const float *x = at(i.src, i.src_at, r), *other = i.other >= 0 ? at(i.other, i.other_at, r) : vector(i.weight);
      const bool sum = i.op == Op::kAdd;
      for (int32_t n = 0; n < i.width; ++n) {
        const float operand = other != nullptr ? other[n] : i.scale;
        y[n] = sum ? x[n] + operand : x[n] * operand;
      }
      break;
    }
    case Op::kClamp: {
      const float* x = at(i.src, i.src_at, r);
      for (int32_t n = 0; n < i.width; ++n) y[n] = std::min(std::max(x[n], -i.scale), i.scale);
      break;
    }
    case Op::kAct:
      std::memmove(y, at(i.src, i.src_at, r), static_cast<size_t>(i.width) * 4);
      k.activate(static_cast<Act>(i.act), y, i.width);
      break;
    case Op::kNorm:
      for (int32_t s = 0; s < i.count; ++s) {
        const int32_t skip = s * i.width;
        k.norm(static_cast<NormKind>(i.norm), at(i.src, i.src_at, r) + skip,
               i.other >= 0 ? at(i.other, i.other_at, r) + skip : nullptr,
               i.total >= 0 ? at(i.total, i.total_at, r) + skip : nullptr, y + skip, i.width, vector(i.weight),
               vector(i.bias), i.eps);
      }
      break;
    case Op::kRotate:
      std::memcpy(y, at(i.src, i.src_at, r), static_cast<size_t>(i.width) * 4);
      rotate(i, vector(i.table) + static_cast<int64_t>(in_.positions[r]) * i.rotated, y, i.count);
      break;
    case Op::kSoftmax: {
      const float* x = at(i.src, i.src_at, r);
      const float top = *std::max_element(x, x + i.width);
      float total = 0;
      for (int32_t n = 0; n < i.width; ++n) total += y[n] = std::exp(x[n] - top);
      for (int32_t n = 0; n < i.width; ++n) y[n] /= total;
      break;
    }
    case Op::kTopK: {
      const float* x = at(i.src, i.src_at, r);
      float* indices = at(i.total, i.total_at, r);
      int32_t before = -1;  // the one chosen last; equal scores are taken in order
      for (int32_t n = 0; n < i.count; ++n) {
        int32_t best = -1;
        for (int32_t e = 0; e < i.width; ++e) {
          const bool left = before < 0 || x[e] < x[before] || (x[e] == x[before] && e > before);
          if (left && (best < 0 || x[e] > x[best])) best = e;
        }
        before = best = std::max(best, 0);  // none is left where scores are NaN
        indices[n] = static_cast<float>(best);
        y[n] = x[best];
      }
      break;
    }
    case Op::kSum: {
      const float* x = at(i.src, i.src_at, r);
      y[0] = 0;
      for (int32_t n = 0; n < i.width; ++n) y[0] += x[n];
      break;
    }
    case Op::kDivide: {
      const float *x = at(i.src, i.src_at, r), by = *at(i.other, i.other_at, r);
      for (int32_t n = 0; n < i.width; ++n) y[n] = x[n] / by;
      break;
    }
    case Op::kLast: {
      const int64_t from = r / in_.keep * in_.count + in_.count - in_.keep + r % in_.keep;
      std::memcpy(y, at(i.src, i.src_at, from), static_cast<size_t>(i.width) * 4);
      break;
    }
    default: break;
  }
  if (i.quantize != 0) quantize(i, r, i.dst_at, i.op == Op::kNorm ? static_cast<int64_t>(i.width) * i.count : i.width);
}

// What earlier steps cached for one head of one sequence, from where the caller has it.
void Executor::copy_past(int64_t unit) {
  const size_t bytes = bytes_of(layout_.kind);
  for (size_t n = 0; n < model_.caches.size(); ++n) {
    const CacheShape& shape = model_.caches[n];
    const int64_t units = batch_ * shape.heads;
    if (unit >= units) {
      unit -= units;
      continue;
    }
    auto copy = [&](uint8_t* to, const uint8_t* from, int64_t dim) {
      const size_t slot = static_cast<size_t>(dim) * bytes, head = static_cast<size_t>(unit);
      std::memcpy(to + head * static_cast<size_t>(layout_.capacity) * slot,
                  from + head * static_cast<size_t>(layout_.past_capacity) * slot, static_cast<size_t>(in_.start) * slot);
    };
    copy(caches_[n].keys, caches_[n].past_keys, shape.dim);
    copy(caches_[n].values, caches_[n].past_values, shape.value_dim);
    return;
  }
}

void Executor::append(const Instruction& i, int64_t block) {
  const CacheShape& shape = model_.caches[static_cast<size_t>(i.cache)];
  const CacheView& cache = caches_[static_cast<size_t>(i.cache)];
  const float* table = vector(i.table);
  const bool tiled = layout_.tiled;
  const int64_t rows = batch_ * in_.count, step = tiled ? kLanes : 1;  // from a key's channel to the next
  for (int64_t r = block * kLanes; r < std::min(rows, (block + 1) * kLanes); ++r) {
    float *q = i.count > 0 ? at(i.src, i.src_at, r) : nullptr, *k = at(i.other, i.other_at, r);
    if (table != nullptr) {
      const float* angles = table + static_cast<int64_t>(in_.positions[r]) * i.rotated;
      rotate(i, angles, q, i.count);
      rotate(i, angles, k, i.heads);
    }
    const float* v = at(i.total, i.total_at, r);
    const int64_t b = r / in_.count, slot = in_.start + r % in_.count;
    for (int32_t h = 0; h < i.heads; ++h) {
      const int64_t head = b * i.heads + h, first = head * layout_.capacity + (tiled ? slot / kLanes * kLanes : slot);
      const int64_t key = first * shape.dim + (tiled ? slot % kLanes : 0);
      const int64_t value = (head * layout_.capacity + slot) * value_stride(i.cache);
      if (layout_.kind == CacheKind::kF16) {
        uint16_t *to = reinterpret_cast<uint16_t*>(cache.keys) + key,
                 *vs = reinterpret_cast<uint16_t*>(cache.values) + value;
        for (int32_t d = 0; d < shape.dim; d += kLanes) {
          uint16_t halves[kLanes];
          const int32_t n = std::min(kLanes, shape.dim - d);
          model_.kernels->to_halves(k + h * shape.dim + d, halves, n);
          for (int32_t e = 0; e < n; ++e) to[(d + e) * step] = halves[e];
        }
        model_.kernels->to_halves(v + h * shape.value_dim, vs, shape.value_dim);
      } else {
        float *to = reinterpret_cast<float*>(cache.keys) + key,
              *vs = reinterpret_cast<float*>(cache.values) + value;
        for (int32_t d = 0; d < shape.dim; ++d) to[d * step] = k[h * shape.dim + d];
        for (int32_t d = 0; d < shape.value_dim; ++d) vs[d] = v[h * shape.value_dim + d];
      }
    }
  }
}

void Executor::attend(const Instruction& i, const Cut& c, int64_t chunk) {
  float scratch[kScratch];
  const CacheView& cache = caches_[static_cast<size_t>(i.cache)];
  const size_t bytes = bytes_of(layout_.kind);
  const int64_t split = chunk % c.splits, block = chunk / c.splits % c.blocks, unit = chunk / c.splits / c.blocks;
  const int64_t b = unit / i.heads, group = unit % i.heads, heads = i.count / i.heads;
  const int64_t first = block * c.row_block, row = b * in_.count + first;
  const size_t head = static_cast<size_t>((b * i.heads + group) * layout_.capacity);
  Attention a{};
  a.q = at(i.src, i.src_at, row) + group * heads * i.dim;
  a.q_stride = buffers_[static_cast<size_t>(i.src)].width;
  a.rows = static_cast<int>(std::min(c.row_block, in_.count - first));
  a.heads = static_cast<int>(heads);
  a.dim = i.dim;
  a.value_dim = i.value_dim;
  a.value_stride = value_stride(i.cache);
  a.tiled = layout_.tiled;
  a.keys = cache.keys + head * static_cast<size_t>(i.dim) * bytes;
  a.values = cache.values + head * static_cast<size_t>(a.value_stride) * bytes;
  a.cache = layout_.kind;
  a.first = split * c.keys_per_split;
  a.end = std::min(a.first + c.keys_per_split, in_.start + in_.count);
  a.scale = i.scale;
  a.softcap = i.softcap;
  a.slopes = i.slopes >= 0 ? vector(i.slopes) + group * heads : nullptr;
  a.query_positions = in_.query_positions + row;
  a.key_positions = in_.key_positions != nullptr ? in_.key_positions + b * (in_.start + in_.count) : nullptr;
  a.valid = in_.valid != nullptr ? in_.valid + b * (in_.start + in_.count) : nullptr;
  a.causal = i.causal != 0;
  a.window = i.window;
  a.chunk = i.chunk;
  a.prefix = i.prefix != 0 && in_.prefix != nullptr ? in_.prefix[b] : 0;
  // pairs of a split lie together: [split][row][head]
  const int64_t pair = (split * batch_ * in_.count + row) * i.count + group * heads;
  a.maxima = maxima_ + pair;
  a.totals = totals_ + pair;
  a.out_stride = whole_vectors(i.value_dim);
  a.outputs = outputs_ + pair * a.out_stride;
  a.row_stride = i.count;
  a.scratch = scratch;
  model_.kernels->attend(a);
  if (c.whole)
    for (int64_t r = row; r < row + a.rows; ++r) merge(i, c, r, group * heads, heads);
}

// Joins the splits of `heads` heads of a row, from head `first` on.
void Executor::merge(const Instruction& i, const Cut& c, int64_t r, int64_t first, int64_t heads) {
  const int64_t width = whole_vectors(i.value_dim), pairs = batch_ * in_.count * i.count;
  const float* sinks = vector(i.sinks);
  for (int64_t h = first; h < first + heads; ++h) {
    const int64_t pair = r * i.count + h;
    model_.kernels->join({maxima_ + pair, totals_ + pair, outputs_ + pair * width, c.splits, pairs, width, i.value_dim,
                          sinks != nullptr ? sinks + h : nullptr, at(i.dst, i.dst_at, r) + h * i.value_dim});
  }
  if (i.quantize != 0) quantize(i, r, i.dst_at + first * i.value_dim, heads * i.value_dim);
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
      case Op::kAppend:
        phase(number, (rows + kLanes - 1) / kLanes, [&](uint32_t block) { append(i, block); });
        break;
      case Op::kAttend: {
        const Cut c = cut(i);
        phase(number, batch_ * i.heads * c.blocks * c.splits, [&](uint32_t chunk) { attend(i, c, chunk); });
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
  for (int64_t r = 0; r < batch * inputs.count; ++r)
    if (inputs.ids[r] < 0 || inputs.ids[r] >= model_.vocab || inputs.positions[r] < 0 || inputs.positions[r] >= positions)
      throw std::invalid_argument("a token id or position is out of range");
  in_ = inputs;
  batch_ = batch;
  caches_ = caches;
  layout_ = layout;
  threads_ = crew_.size();
  rows_ = batch * inputs.count;
  kept_ = batch * inputs.keep;
  reserve(rows_);
  first_phase_ = phases_.current();
  crew_.run([this](int thread) { work(thread); });
}

}  // namespace edgeformer
