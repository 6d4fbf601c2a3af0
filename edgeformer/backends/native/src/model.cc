// Weights: from rows, as files hold them, into tiles.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace edgeformer {

int Model::add_matrix(Kind kind, int64_t rows, int64_t cols, int64_t tile_count) {
  if (rows <= 0 || cols <= 0 || tile_count < (rows + kLanes - 1) / kLanes || (grouped(kind) && cols % kGroup != 0))
    throw std::invalid_argument("a matrix needs rows and columns, and a quantized one whole groups of 32 columns");
  const size_t bytes = static_cast<size_t>(tile_count) * tile_bytes(kind, cols);
  constexpr size_t kArena = size_t{64} << 20;  // matrices share large blocks, so that few pages are partly empty
  if (bytes > arena_left_) {
    arena_left_ = std::max(bytes, kArena);
    memory_.emplace_back(arena_left_);
    arena_ = memory_.back().data();
  }
  matrices.push_back({kind, rows, cols, tile_count, arena_});
  const size_t taken = std::min((bytes + 127) / 128 * 128, arena_left_);
  arena_ += taken;
  arena_left_ -= taken;
  return static_cast<int>(matrices.size()) - 1;
}

int Model::add_vector(const float* data, int64_t count) {
  vectors.emplace_back(data, data + count);
  return static_cast<int>(vectors.size()) - 1;
}

void Model::set_vector(int vector, int64_t start, const float* data, int64_t count) {
  std::vector<float>& v = vectors.at(static_cast<size_t>(vector));
  if (start < 0 || count < 0 || start + count > static_cast<int64_t>(v.size()))
    throw std::invalid_argument("these numbers lie outside the vector");
  std::copy(data, data + count, v.begin() + start);
}

namespace {

// `rows` rows, the first of them in lane `lane`: a tile is written in its own order, once.
template <typename T>
void fill_plain(T* tile, int64_t lane, int64_t rows, int64_t cols, const T* data) {
  for (int64_t k = 0; k < cols; ++k)
    for (int64_t r = 0; r < rows; ++r) tile[k * kLanes + lane + r] = data[r * cols + k];
}

void fill_q8(uint8_t* tile, int64_t lane, int64_t cols, const uint8_t* codes, const uint16_t* scales) {
  for (int64_t b = 0; b < cols / kGroup; ++b, tile += 544) {
    for (int g = 0; g < 8; ++g) std::memcpy(tile + g * 64 + lane * 4, codes + b * 32 + g * 4, 4);
    std::memcpy(tile + 512 + lane * 2, scales + b, 2);
  }
}

// Four codes of four bits as the bytes of a number, the first one lowest.
uint32_t four_bytes(const uint8_t* codes) {
  uint32_t x = codes[0] | static_cast<uint32_t>(codes[1]) << 8;
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}

// Stored: the first code of a byte is the low one. In a tile, the low ones are inputs 0..15 of the group, the high ones 16..31.
void fill_q4(uint8_t* tile, int64_t lane, int64_t cols, const uint8_t* codes, const uint16_t* scales) {
  for (int64_t b = 0; b < cols / kGroup; ++b, tile += 288, codes += 16) {
    for (int four = 0; four < 4; ++four) {
      const uint32_t quad = four_bytes(codes + four * 2) | four_bytes(codes + 8 + four * 2) << 4;
      uint8_t* to = tile + four * 64 + lane * 4;
      for (int k = 0; k < 4; ++k) to[k] = static_cast<uint8_t>(quad >> (8 * k));
    }
    std::memcpy(tile + 256 + lane * 2, scales + b, 2);
  }
}

}  // namespace

void Model::fill(int index, int64_t tile, int64_t step, int64_t row, int64_t count, const void* data,
                 const uint16_t* scales) {
  const Matrix& m = matrices.at(static_cast<size_t>(index));
  const size_t bytes = tile_bytes(m.kind, m.cols);
  if (row < 0 || count < 0 || step <= 0 || tile < 0 || (count > 0 && tile + (row + count - 1) / kLanes * step >= m.tile_count))
    throw std::invalid_argument("these rows lie outside the matrix");
  for (int64_t r = row, rows; r < row + count; r += rows) {
    uint8_t* at = const_cast<uint8_t*>(m.tiles) + static_cast<size_t>(tile + r / kLanes * step) * bytes;
    const int64_t lane = r % kLanes, n = r - row;
    rows = std::min(kLanes - lane, count - n);
    switch (m.kind) {
      case Kind::kF32:
        fill_plain(reinterpret_cast<float*>(at), lane, rows, m.cols, static_cast<const float*>(data) + n * m.cols);
        break;
      case Kind::kF16:
      case Kind::kBF16:
        fill_plain(reinterpret_cast<uint16_t*>(at), lane, rows, m.cols, static_cast<const uint16_t*>(data) + n * m.cols);
        break;
      case Kind::kQ8:
      case Kind::kQ8Exact:
        for (int64_t i = n; i < n + rows; ++i)
          fill_q8(at, lane + i - n, m.cols, static_cast<const uint8_t*>(data) + i * m.cols, scales + i * (m.cols / kGroup));
        break;
      case Kind::kQ4:
      case Kind::kQ4Exact:
        for (int64_t i = n; i < n + rows; ++i)
          fill_q4(at, lane + i - n, m.cols, static_cast<const uint8_t*>(data) + i * (m.cols / 2),
                  scales + i * (m.cols / kGroup));
        break;
    }
  }
}

namespace {

// Tiles of rows; gates and ups end with a tile of their own each.
int64_t tiles_of(int64_t rows, bool pairs) {
  return pairs ? 2 * ((rows / 2 + kLanes - 1) / kLanes) : (rows + kLanes - 1) / kLanes;
}

}  // namespace

void Model::set_program(std::vector<int32_t> buffer_widths, std::vector<Instruction> instructions,
                        std::vector<CacheShape> shapes) {
  auto require = [](bool holds, const char* rule) {
    if (!holds) throw std::invalid_argument(std::string("an instruction is malformed: ") + rule);
  };
  auto fits = [&](int32_t buffer, int64_t column, int64_t width) {
    if (column < 0 || width < 0) return false;
    if (buffer < 0) return buffer == -1 && column + width <= vocab;
    return buffer < static_cast<int32_t>(buffer_widths.size()) &&
           column + width <= (buffer_widths[static_cast<size_t>(buffer)] + 31) / 32 * 32;
  };
  auto vector_of = [&](int32_t index, int64_t size) {
    return index < 0 || (index < static_cast<int32_t>(vectors.size()) &&
                         static_cast<int64_t>(vectors[static_cast<size_t>(index)].size()) >= size);
  };
  int64_t floats = 0;
  int32_t token_types = 0;
  bool pools = false, logits = false;
  std::vector<Out> filled;
  size_t coded = 0;
  int64_t slot_floats = 0;
  for (const CacheShape& c : shapes) {
    require(c.heads > 0 && c.dim > 0 && c.value_dim > 0, "a cache has no heads");
    slot_floats += int64_t{c.heads} * (int64_t{c.dim} + whole_vectors(c.value_dim));
    require(slot_floats <= int64_t{1} << 30, "the caches of a token are too large");
    require((c.key_scales < 0) == (c.value_scales < 0) && vector_of(c.key_scales, int64_t{c.heads} * c.dim) &&
                vector_of(c.value_scales, int64_t{c.heads} * c.value_dim) && (c.key_scales < 0 || c.latent == 0),
            "the scales don't fit the cache");
    coded += c.key_scales >= 0;
  }
  require(coded == 0 || coded == shapes.size(), "some caches have scales, and some don't");
  has_codes = coded > 0;
  for (const CacheShape& c : shapes) require(c.latent == 0 || c.value_dim < c.dim, "keys of latents are longer than these");
  for (int32_t width : buffer_widths) {
    floats += width;
    require(width > 0 && floats <= int64_t{1} << 30, "a row of activations is too long");
  }
  for (const Instruction& i : instructions) {
    require(static_cast<int32_t>(i.op) >= 0 && i.op <= Op::kOut, "unknown op");
    require(i.dst >= 0 || i.kept != 0 || i.op == Op::kAppend || i.op == Op::kOut, "logits are of the positions that are kept");
    logits = logits || (i.dst < 0 && i.op != Op::kAppend && i.op != Op::kOut);
    require(i.kept != 0 || i.op != Op::kLast, "the last positions are those that are kept");
    require(i.quantize == 0 || (i.dst >= 0 && i.dst_at % kGroup == 0), "rows for int8 start at whole groups of 32");
    if (i.op == Op::kLinear || i.op == Op::kGlu || i.op == Op::kEmbed || i.op == Op::kLookup ||
        i.op == Op::kTypes) {
      require(i.matrix >= 0 && i.matrix < static_cast<int32_t>(matrices.size()), "no such matrix");
      const Matrix& m = matrices[static_cast<size_t>(i.matrix)];
      require(i.op != Op::kLookup || (i.count >= 0 && i.count < m.rows), "the offset is beyond the table");
      require(i.op != Op::kEmbed || m.rows >= vocab, "the table has fewer rows than the vocabulary");
      if (i.op == Op::kTypes) token_types = static_cast<int32_t>(token_types == 0 ? m.rows : std::min<int64_t>(token_types, m.rows));
      const bool product = i.op == Op::kLinear || i.op == Op::kGlu;
      require(product || i.width == m.cols, "rows of a table are as wide as it is");
      require(!product || m.tile_count == tiles_of(m.rows, i.op == Op::kGlu), "the matrix has other tiles than its rows need");
      require(i.op != Op::kGlu || (m.tile_count % 2 == 0 && m.rows % 2 == 0), "gates and ups are not alike");
      const int64_t outputs = i.op == Op::kGlu ? m.rows / 2 : product ? m.rows : m.cols;
      require(fits(i.dst, i.dst_at, outputs), "the result doesn't fit its buffer");
      require(!product || (i.src >= 0 && fits(i.src, i.src_at, m.cols)), "the inputs don't fit the matrix");
      require(!product || !rounds(m.kind) || i.src_at % kGroup == 0, "rows for int8 start at whole groups of 32");
      require(vector_of(i.bias, product ? outputs : 0) && vector_of(i.weight, i.op == Op::kGlu ? outputs : 0), "short bias");
      require(i.op != Op::kGlu || (i.bias < 0) == (i.weight < 0), "a bias of gates needs one of ups");
      require(i.act >= 0 && i.act <= static_cast<int32_t>(Act::kTanh), "unknown activation");
      continue;
    }
    if (i.op == Op::kAppend || i.op == Op::kAttend) {
      require(i.kept == 0, "every token is cached, and attends");
      require(i.cache >= 0 && i.cache < static_cast<int32_t>(shapes.size()), "no such cache");
      const CacheShape& c = shapes[static_cast<size_t>(i.cache)];
      require(i.heads > 0 && i.count >= (i.op == Op::kAttend ? 1 : 0) && i.count % i.heads == 0 && c.heads == i.heads && c.dim == i.dim &&
                  c.value_dim == i.value_dim && i.dim > 0 && i.value_dim > 0,
              "the heads don't fit the cache");
      require(i.count == 0 || (i.src >= 0 && fits(i.src, i.src_at, int64_t{i.count} * i.dim)), "the queries don't fit their buffer");
      require(!has_codes || i.count > 0, "a cache of codes needs queries, which it scales");
      if (i.op == Op::kAppend) {
        require(i.other >= 0 && fits(i.other, i.other_at, int64_t{i.heads} * i.dim) && i.total >= 0 &&
                    fits(i.total, i.total_at, int64_t{i.heads} * i.value_dim),
                "the keys or values don't fit their buffers");
        require(i.rotated >= 0 && i.rotated % 2 == 0 && i.rotated <= i.dim && (i.table < 0 || i.rotated > 0) &&
                    vector_of(i.table, i.rotated),
                "the rotation doesn't fit the heads");
      } else {
        require(i.dst >= 0 && fits(i.dst, i.dst_at, int64_t{i.count} * i.value_dim), "the result doesn't fit its buffer");
        require(i.furthest >= 0 && i.furthest <= 1 << 20 && (i.furthest == 0 || i.slopes >= 0), "biases need a table");
        require(vector_of(i.slopes, int64_t{i.count} * (2 * i.furthest + 1)) && vector_of(i.sinks, i.count), "short slopes or sinks");
      }
      continue;
    }
    if (i.op == Op::kMoe) {
      const int64_t padded = (int64_t{i.value_dim} + kGroup - 1) / kGroup * kGroup, size = static_cast<int64_t>(matrices.size());
      require(i.heads > 0 && i.count > 0 && i.count <= i.heads && i.width > 0 && i.value_dim > 0, "no experts");
      require(i.matrix >= 0 && i.bias >= 0 && int64_t{i.matrix} + i.heads <= size && int64_t{i.bias} + i.heads <= size, "no such matrix");
      for (int32_t e = 0; e < i.heads; ++e) {
        const Matrix &first = matrices[static_cast<size_t>(i.matrix + e)], &second = matrices[static_cast<size_t>(i.bias + e)];
        const Matrix &one = matrices[static_cast<size_t>(i.matrix)], &other = matrices[static_cast<size_t>(i.bias)];
        require(first.kind == one.kind && second.kind == other.kind, "experts are of different kinds");
        require(!rounds(first.kind) || i.src_at % kGroup == 0, "rows for int8 start at whole groups of 32");
        require(first.tile_count == tiles_of(first.rows, true) && second.tile_count == tiles_of(second.rows, false),
                "the matrix has other tiles than its rows need");
        require(first.rows == 2 * int64_t{i.value_dim} && second.cols == i.value_dim &&
                    second.rows == i.width && i.src >= 0 && fits(i.src, i.src_at, first.cols),
                "the experts don't fit the rows");
      }
      require(i.dst >= 0 && fits(i.dst, i.dst_at, i.width) && i.other >= 0 && fits(i.other, i.other_at, i.count) &&
                  i.total >= 0 && fits(i.total, i.total_at, i.count),
              "the chosen experts don't fit");
      require(i.middle >= 0 && i.middle < static_cast<int32_t>(buffer_widths.size()) &&
                  buffer_widths[static_cast<size_t>(i.middle)] == i.count * padded,
              "the hidden rows don't fit");
      require(i.act >= 0 && i.act <= static_cast<int32_t>(Act::kTanh), "unknown activation");
      continue;
    }
    if (i.op == Op::kMaps || i.op == Op::kHeads) {
      const bool maps = i.op == Op::kMaps;
      const int64_t heads = maps ? i.heads : i.count;
      require(heads > 0 && i.src >= 0 && i.dst >= 0 && i.src_step >= 0 && i.dst_step >= 0, "no heads");
      int64_t inputs = i.dim, outputs = i.dim;
      if (maps) {
        require(i.matrix >= 0 && int64_t{i.matrix} + heads <= static_cast<int64_t>(matrices.size()), "no such matrix");
        const Matrix& m = matrices[static_cast<size_t>(i.matrix)];
        inputs = m.cols, outputs = m.rows;
        for (int32_t h = 0; h < i.heads; ++h) {
          const Matrix& other = matrices[static_cast<size_t>(i.matrix + h)];
          require(other.rows == m.rows && other.cols == m.cols && !rounds(other.kind) && other.tile_count == tiles_of(m.rows, false), "maps of heads differ");
        }
      } else {
        require(i.dim > 0 && (i.table < 0 || (i.rotated > 0 && i.rotated % 2 == 0 && i.rotated <= i.dim && vector_of(i.table, i.rotated))),
                "the rotation doesn't fit the heads");
      }
      require(fits(i.src, i.src_at, (heads - 1) * i.src_step + inputs) && fits(i.dst, i.dst_at, (heads - 1) * i.dst_step + outputs) &&
                  i.dst_step >= outputs && (i.quantize == 0 || fits(i.dst, i.dst_at, heads * i.dst_step)),
              "the heads don't fit their buffers");
      continue;
    }
    if (i.op == Op::kOut) {
      require(i.count >= 0 && i.count < 16 && i.width > 0 && i.src >= 0 && fits(i.src, i.src_at, i.width) && i.quantize == 0, "no such output");
      if (static_cast<size_t>(i.count) >= filled.size()) filled.resize(static_cast<size_t>(i.count) + 1);
      require(filled[static_cast<size_t>(i.count)].width == 0, "two outputs have one number");
      filled[static_cast<size_t>(i.count)] = {i.width, i.kept != 0};
      continue;
    }
    pools = pools || i.op == Op::kPool;
    require(i.op != Op::kPool || (i.kept != 0 && i.dst >= 0 && i.count >= 0 && i.count <= 1), "unknown pooling");
    require(i.op != Op::kGroups || (i.heads > 0 && i.count > 0 && i.count <= i.heads && i.width % i.heads == 0), "no groups");
    require(i.quantize == 0 || (i.op != Op::kTopK && i.op != Op::kSum), "no rows for int8");
    require(i.op != Op::kTopK || (i.count > 0 && i.count <= i.width && i.total >= 0), "too many to choose");
    require(i.op != Op::kDivide || i.other >= 0, "nothing to divide by");
    const int64_t width = int64_t{i.width} * (i.op == Op::kNorm ? i.count : 1);
    require(i.width > 0 && fits(i.dst, i.dst_at, i.op == Op::kTopK ? i.count : i.op == Op::kSum ? 1 : width) && i.src >= 0 &&
                fits(i.src, i.src_at, width),
            "rows don't fit");
    require(i.other < 0 || fits(i.other, i.other_at, i.op == Op::kDivide ? 1 : width), "the second rows don't fit");
    require(i.total < 0 || fits(i.total, i.total_at, i.op == Op::kTopK ? i.count : width), "the sums don't fit");
    require(vector_of(i.weight, i.width) && vector_of(i.bias, i.width), "short vectors");
    require(i.act >= 0 && i.act <= static_cast<int32_t>(Act::kTanh), "unknown activation");
  }
  // queries take the scales where keys are appended: both must be the same ones
  for (size_t n = 0; n < instructions.size() && has_codes; ++n)
    if (instructions[n].op == Op::kAttend) {
      const Instruction& a = instructions[n];
      const auto appends = [&](const Instruction& i) {
        return i.op == Op::kAppend && i.cache == a.cache && i.src == a.src && i.src_at == a.src_at && i.count == a.count;
      };
      require(std::any_of(instructions.begin(), instructions.begin() + static_cast<std::ptrdiff_t>(n), appends), "queries of a cache of codes come from elsewhere");
    }
  widths = std::move(buffer_widths);
  program = std::move(instructions);
  caches = std::move(shapes);
  for (const Out& out : filled) require(out.width > 0, "an output is missing");
  require(filled.empty() ? !pools : !logits, "a model returns logits, or what it copies out");
  outs = std::move(filled);
  types = token_types;
}

const Kernels* choose_kernels(const char* name) {
  for (const Kernels* k : {avx512_kernels(), avx2_kernels(), neon_kernels(), portable_kernels()})
    if (k != nullptr && k->available() && (name == nullptr || std::strcmp(name, k->name) == 0)) return k;
  return nullptr;
}

const Kernels* kernels_here() {
  const char* name = std::getenv("EDGEFORMER_ISA");
  const Kernels* found = choose_kernels(name != nullptr && *name != '\0' ? name : nullptr);
  if (found == nullptr) throw std::invalid_argument(std::string("EDGEFORMER_ISA=") + name + ": this processor has no such instruction set");
  return found;
}

}  // namespace edgeformer
