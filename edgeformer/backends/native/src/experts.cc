// Mixtures of experts: each expert's tiles meet all rows that chose it, one after the other.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace edgeformer {

void Executor::experts(const Instruction& i, uint32_t& number) {
  const int64_t rows = i.kept != 0 ? kept_ : rows_, hidden = i.value_dim, chosen = i.count, all = i.heads;
  if (rows == 0) return;
  const Matrix* first = &model_.matrices[static_cast<size_t>(i.matrix)];
  const Matrix* second = &model_.matrices[static_cast<size_t>(i.bias)];
  const Kernels& k = *model_.kernels;
  const Rows in = rows_of(i.src, i.src_at);
  const Buffer& middle = buffers_[static_cast<size_t>(i.middle)];  // [rows, chosen * padded hidden width]
  const int64_t padded = (hidden + kGroup - 1) / kGroup * kGroup;
  auto expert = [&](int64_t row, int64_t slot) {
    const float index = at(i.total, i.total_at, row)[slot];
    return index >= 0 && index < static_cast<float>(all) ? static_cast<int64_t>(index) : 0;
  };

  const int64_t pairs = (hidden + kLanes - 1) / kLanes, size = std::max<int64_t>((pairs / (4 * threads_) + 1) / 2 * 2, 2);
  const int64_t pieces = (pairs + size - 1) / size;
  auto hidden_of = [&](int64_t r, int64_t s, int64_t from) {
    float* y = middle.x + r * middle.width + s * padded;
    k.glu(first[expert(r, s)], from, std::min(from + size, pairs), in, r, r + 1, y - r * middle.width, middle.width, nullptr,
          nullptr, static_cast<Act>(i.act));
  };
  const bool few = rows * chosen < all;  // then most experts have no row
  phase(number, (few ? rows * chosen : all) * pieces, [&](uint32_t chunk) {
    const int64_t unit = chunk / pieces, from = chunk % pieces * size;
    if (few) return hidden_of(unit / chosen, unit % chosen, from);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t s = 0; s < chosen; ++s)
        if (expert(r, s) == unit) hidden_of(r, s, from);
  });

  // Row r's slot s as a row of its own: rows of `padded` floats.
  const Rows wide{middle.x, padded, middle.codes, middle.scales, middle.sums, padded, padded / kGroup};
  const int64_t slots = middle.width / padded;
  if (rounds(second[0].kind))
    by_rows(number, rows * slots, [&](int64_t row) {
      const int64_t group = row * wide.group_stride;
      k.quantize(middle.x + row * padded, hidden, {middle.codes + row * padded, middle.scales + group, middle.sums + group});
    });
  const int64_t tiles = (i.width + kLanes - 1) / kLanes;
  phase(number, tiles, [&](uint32_t tile) {
    const int64_t column = static_cast<int64_t>(tile) * kLanes, n = std::min<int64_t>(kLanes, i.width - column);
    for (int64_t r = 0; r < rows; ++r) std::memset(at(i.dst, i.dst_at, r) + column, 0, static_cast<size_t>(n) * 4);
    auto add = [&](int64_t r, int64_t s) {
      float part[kLanes];
      const int64_t row = r * slots + s;
      k.linear(second[expert(r, s)], tile, tile + 1, wide, row, row + 1, part - column - row * kLanes, kLanes, nullptr, Act::kNone);
      const float share = at(i.other, i.other_at, r)[s];
      float* y = at(i.dst, i.dst_at, r) + column;
      for (int64_t d = 0; d < n; ++d) y[d] += share * part[d];
    };
    for (int64_t e = 0; e < (few ? 1 : all); ++e)  // a tile of an expert stays in the cache for all its rows
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s < chosen; ++s)
          if (few || expert(r, s) == e) add(r, s);
  });
  if (i.quantize != 0) by_rows(number, rows, [&](int64_t r) { quantize(i, r, i.dst_at, i.width); });
}

}  // namespace edgeformer
