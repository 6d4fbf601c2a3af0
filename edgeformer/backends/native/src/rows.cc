// Instructions that work on one row at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine.h"

namespace edgeformer {

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

// Whatever works on one row.
void Executor::row(const Instruction& i, int64_t r) {
  const Kernels& k = *model_.kernels;
  float* y = at(i.dst, i.dst_at, r);
  switch (i.op) {
    case Op::kEmbed:
    case Op::kLookup:
    case Op::kTypes: {
      const Matrix& m = model_.matrices[static_cast<size_t>(i.matrix)];
      k.row(m, i.op == Op::kEmbed ? in_.ids[r] : i.op == Op::kTypes ? in_.types[r] : in_.positions[r] + i.count, y);
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
    case Op::kHeads: {
      const float *x = at(i.src, i.src_at, r), *angles = vector(i.table);
      if (angles != nullptr) angles += static_cast<int64_t>(in_.positions[r]) * i.rotated;
      for (int32_t h = 0; h < i.count; ++h, x += i.src_step, y += i.dst_step) {
        std::memcpy(y, x, static_cast<size_t>(i.dim) * 4);
        if (angles != nullptr) rotate(i, angles, y, 1);
      }
      break;
    }
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
      const Sequence& s = sequences_[static_cast<size_t>(r / in_.keep)];
      std::memcpy(y, at(i.src, i.src_at, s.row + s.count - in_.keep + r % in_.keep), static_cast<size_t>(i.width) * 4);
      break;
    }
    case Op::kGroups: {
      const float* x = at(i.src, i.src_at, r);
      const int32_t size = i.width / i.heads;
      for (int32_t g = 0; g < i.heads; ++g) {  // in how many groups is the largest number larger, or equal and earlier?
        const float own = *std::max_element(x + g * size, x + (g + 1) * size);
        int32_t better = 0;
        for (int32_t o = 0; o < i.heads; ++o) {
          const float other = *std::max_element(x + o * size, x + (o + 1) * size);
          better += other > own || (other == own && o < g);
        }
        for (int32_t n = g * size; n < (g + 1) * size; ++n) y[n] = better < i.count ? x[n] : 0.0f;
      }
      break;
    }
    case Op::kPool: {
      const Sequence& s = sequences_[static_cast<size_t>(r)];
      if (i.count == 0) {
        std::memcpy(y, at(i.src, i.src_at, s.row), static_cast<size_t>(i.width) * 4);
        break;
      }
      std::memset(y, 0, static_cast<size_t>(i.width) * 4);
      float tokens = 0;
      for (int64_t t = s.row; t < s.row + s.count; ++t) {
        if (in_.valid != nullptr && in_.valid[t] == 0) continue;
        const float* x = at(i.src, i.src_at, t);
        for (int32_t n = 0; n < i.width; ++n) y[n] += x[n];
        ++tokens;
      }
      for (int32_t n = 0; n < i.width; ++n) y[n] /= std::max(tokens, 1.0f);
      break;
    }
    case Op::kOut: {
      const int64_t to = (i.kept != 0 ? in_.text_places : in_.places)[r];
      std::memcpy(in_.outs[i.count] + to * i.width, at(i.src, i.src_at, r), static_cast<size_t>(i.width) * 4);
      break;
    }
    default: break;
  }
  if (i.quantize == 0) return;
  const int64_t width = i.op == Op::kNorm ? static_cast<int64_t>(i.width) * i.count : i.op == Op::kHeads ? i.count * i.dst_step : i.width;
  quantize(i, r, i.dst_at, width);
}

}  // namespace edgeformer
