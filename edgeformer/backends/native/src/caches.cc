// Instructions that fill caches and attend to them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine.h"

namespace edgeformer {

namespace {

// The nearest code; ties go to the even one, as in ONNX.
void to_codes(const float* x, const float* scales, int8_t* codes, int32_t count, int64_t step) {
  for (int32_t n = 0; n < count; ++n) {
    const float code = std::nearbyint(x[n] / scales[n]);
    codes[n * step] = static_cast<int8_t>(code >= -128.0f ? std::min(code, 127.0f) : -128.0f);  // NaN, too
  }
}

}  // namespace

Executor::Cut Executor::cut(const Instruction& i) const {
  const int64_t group = i.count / i.heads, keys = in_.start + in_.count;
  Cut c;
  c.row_block = rows_per_block(group);
  c.blocks = &std::find_if(blocks_.begin(), blocks_.end(), [&](const Blocks& b) { return b.group == group; })->list;
  // not by the number of threads: the order of sums, and so the result, must not depend on it
  constexpr int64_t kWanted = 16;
  const int64_t units = i.heads * static_cast<int64_t>(c.blocks->size()), most = (keys + kKeyBlock - 1) / kKeyBlock;  // at least a block of keys each
  c.splits = units >= kWanted ? 1 : std::min(most, (kWanted + units - 1) / units);
  c.keys_per_split = ((keys + c.splits - 1) / c.splits + kLanes - 1) / kLanes * kLanes;
  c.splits = (keys + c.keys_per_split - 1) / c.keys_per_split;
  c.whole = c.splits == 1 && (i.quantize == 0 || group * i.value_dim % kGroup == 0);
  return c;
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
    copy(caches_[n].keys, caches_[n].past_keys, shape.key_dim());
    copy(caches_[n].values, caches_[n].past_values, shape.value_dim);
    return;
  }
}

void Executor::append(const Instruction& i, int64_t block) {
  const CacheShape& shape = model_.caches[static_cast<size_t>(i.cache)];
  const CacheView& cache = caches_[static_cast<size_t>(i.cache)];
  const float* table = vector(i.table);
  const bool tiled = layout_.tiled;
  const int32_t skipped = shape.dim - shape.key_dim(), dim = shape.key_dim();  // of a key: channels that its value holds
  const int64_t step = tiled ? kLanes : 1;  // from a key's channel to the next
  for (int64_t r = block * kLanes; r < std::min(rows_, (block + 1) * kLanes); ++r) {
    float *q = i.count > 0 ? at(i.src, i.src_at, r) : nullptr, *k = at(i.other, i.other_at, r);
    if (table != nullptr) {
      const float* angles = table + static_cast<int64_t>(in_.positions[r]) * i.rotated;
      rotate(i, angles, q, i.count);
      rotate(i, angles, k, i.heads);
    }
    const bool codes = layout_.kind == CacheKind::kI8;
    if (codes && q != nullptr) {  // the scales of keys go into queries
      const float* scales = vector(shape.key_scales);
      for (int32_t h = 0; h < i.count; ++h)
        for (int32_t d = 0; d < dim; ++d) q[h * dim + d] *= scales[h / (i.count / i.heads) * dim + d];
    }
    const float* v = at(i.total, i.total_at, r);
    const Sequence& s = sequences_[static_cast<size_t>(sequence_of_[static_cast<size_t>(r)])];
    const int64_t slot = in_.start + r - s.row;
    for (int32_t h = 0; h < i.heads; ++h) {
      const int64_t head = s.slot * i.heads + h * s.capacity, first = head + (tiled ? slot / kLanes * kLanes : slot);
      const int64_t key = first * dim + (tiled ? slot % kLanes : 0);
      const int64_t value = (head + slot) * value_stride(i.cache);
      if (codes) {
        to_codes(k + h * dim, vector(shape.key_scales) + h * dim, reinterpret_cast<int8_t*>(cache.keys) + key, dim, step);
        to_codes(v + h * shape.value_dim, vector(shape.value_scales) + h * shape.value_dim, reinterpret_cast<int8_t*>(cache.values) + value,
                 shape.value_dim, 1);
      } else if (layout_.kind == CacheKind::kF16) {
        uint16_t *to = reinterpret_cast<uint16_t*>(cache.keys) + key,
                 *vs = reinterpret_cast<uint16_t*>(cache.values) + value;
        for (int32_t d = 0; d < dim; d += kLanes) {
          uint16_t halves[kLanes];
          const int32_t n = std::min(kLanes, dim - d);
          model_.kernels->to_halves(k + h * shape.dim + skipped + d, halves, n);
          for (int32_t e = 0; e < n; ++e) to[(d + e) * step] = halves[e];
        }
        model_.kernels->to_halves(v + h * shape.value_dim, vs, shape.value_dim);
      } else {
        float *to = reinterpret_cast<float*>(cache.keys) + key,
              *vs = reinterpret_cast<float*>(cache.values) + value;
        for (int32_t d = 0; d < dim; ++d) to[d * step] = k[h * shape.dim + skipped + d];
        for (int32_t d = 0; d < shape.value_dim; ++d) vs[d] = v[h * shape.value_dim + d];
      }
    }
  }
}

void Executor::attend(const Instruction& i, const Cut& c, int64_t chunk) {
  float scratch[kScratch];
  const CacheView& cache = caches_[static_cast<size_t>(i.cache)];
  const size_t bytes = bytes_of(layout_.kind);
  const int64_t split = chunk % c.splits, unit = chunk / c.splits, group = unit % i.heads, heads = i.count / i.heads;
  const Block& block = (*c.blocks)[static_cast<size_t>(unit / i.heads)];
  const Sequence& s = sequences_[static_cast<size_t>(block.sequence)];
  const int64_t b = block.sequence, row = s.row + block.first;
  const size_t head = static_cast<size_t>(s.slot * i.heads + group * s.capacity);
  const CacheShape& shape = model_.caches[static_cast<size_t>(i.cache)];
  Attention a{};
  a.q = at(i.src, i.src_at, row) + group * heads * i.dim;
  a.q_stride = buffers_[static_cast<size_t>(i.src)].width;
  a.rows = static_cast<int>(std::min(c.row_block, s.count - block.first));
  a.heads = static_cast<int>(heads);
  a.dim = i.dim;
  a.value_dim = i.value_dim;
  a.value_stride = value_stride(i.cache);
  a.tiled = layout_.tiled;
  a.latent = shape.latent != 0;
  a.keys = cache.keys + head * static_cast<size_t>(shape.key_dim()) * bytes;
  a.values = cache.values + head * static_cast<size_t>(a.value_stride) * bytes;
  a.cache = layout_.kind;
  a.first = split * c.keys_per_split;
  a.end = std::min(a.first + c.keys_per_split, in_.start + s.count);
  a.scale = i.scale;
  a.softcap = i.softcap;
  a.furthest = i.furthest;
  a.slopes = i.slopes >= 0 ? vector(i.slopes) + group * heads * (2 * i.furthest + 1) : nullptr;
  a.query_positions = in_.query_positions + row;
  const int64_t keys = in_.lengths != nullptr ? s.row : b * (in_.start + in_.count);  // the first of the sequence, among all
  a.key_positions = in_.key_positions;
  if (a.key_positions != nullptr) a.key_positions += keys;
  a.valid = in_.valid;
  if (a.valid != nullptr) a.valid += keys;
  a.causal = i.causal != 0;
  a.window = i.window;
  a.chunk = i.chunk;
  a.prefix = i.prefix != 0 && in_.prefix != nullptr ? in_.prefix[b] : 0;
  // pairs of a split lie together: [split][row][head]
  const int64_t pair = (split * rows_ + row) * i.count + group * heads;
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
  const int64_t width = whole_vectors(i.value_dim), pairs = rows_ * i.count;
  const float* sinks = vector(i.sinks);
  for (int64_t h = first; h < first + heads; ++h) {
    const int64_t pair = r * i.count + h;
    model_.kernels->join({maxima_ + pair, totals_ + pair, outputs_ + pair * width, c.splits, pairs, width, i.value_dim,
                          sinks != nullptr ? sinks + h : nullptr, at(i.dst, i.dst_at, r) + h * i.value_dim});
    if (layout_.kind == CacheKind::kI8) {
      const float* scales = vector(model_.caches[static_cast<size_t>(i.cache)].value_scales) + h / (i.count / i.heads) * i.value_dim;
      float* y = at(i.dst, i.dst_at, r) + h * i.value_dim;
      for (int32_t d = 0; d < i.value_dim; ++d) y[d] *= scales[d];
    }
  }
  if (i.quantize != 0) quantize(i, r, i.dst_at + first * i.value_dim, heads * i.value_dim);
}

}  // namespace edgeformer
