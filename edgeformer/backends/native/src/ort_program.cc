#include "ort_program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "half.h"
#include "mapped_files.h"

namespace edgeformer {

namespace {

[[noreturn]] void fail(const std::string& rule) { throw std::runtime_error("edgeformer: " + rule); }

}  // namespace

// The program's words; every count is compared with what is left.
class OrtProgram::Reader {
 public:
  explicit Reader(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {
    if (bytes_.size() % 4 != 0) fail("the attribute 'program' is cut off");
  }
  int32_t word() {
    int32_t made;
    std::memcpy(&made, take(1), 4);
    return made;
  }
  float number() {
    float made;
    std::memcpy(&made, take(1), 4);
    return made;
  }
  // Not negative.
  int32_t size() {
    const int32_t made = word();
    if (made < 0) fail("the attribute 'program' is malformed");
    return made;
  }
  // Of items that follow, of so many words at least.
  int32_t count(size_t words = 1) {
    const int32_t made = size();
    if (static_cast<size_t>(made) > (bytes_.size() - at_) / 4 / words) fail("the attribute 'program' is cut off");
    return made;
  }
  std::vector<float> numbers(int32_t count) {
    std::vector<float> made(static_cast<size_t>(count));
    if (count > 0) std::memcpy(made.data(), take(made.size()), made.size() * 4);
    return made;
  }
  const uint8_t* take(size_t words) {
    if (words > (bytes_.size() - at_) / 4) fail("the attribute 'program' is cut off");
    const uint8_t* made = bytes_.data() + at_;
    at_ += words * 4;
    return made;
  }

 private:
  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
};

namespace {

constexpr int32_t kMagic = 0x4d504645, kVersion = 4;  // "EFPM"

// An initializer of the expected type and size.
Tensor weight(const Info& info, int32_t index, int type, int64_t count) {
  const std::string which = "input " + std::to_string(index);
  if (index < 0 || static_cast<size_t>(index) >= info.inputs()) fail(which + " doesn't exist");
  const Tensor t = info.constant(static_cast<size_t>(index));
  if (t.data == nullptr) fail(which + " must be an initializer");
  if (type != ort::kUndefined && t.type != type) fail(which + " has another type than the program says");
  if (t.count() < count) fail(which + " is smaller than the program says");
  return t;
}

int type_of(Kind kind) {
  switch (kind) {
    case Kind::kF32: return ort::kFloat;
    case Kind::kF16: return ort::kFloat16;
    case Kind::kBF16: return ort::kBfloat16;
    default: return ort::kUndefined;
  }
}

// Floats of any of the types that graphs store.
void widen(const Tensor& t, int64_t count, std::vector<float>& to) {
  const size_t at = to.size();
  to.resize(at + static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    float& x = to[at + static_cast<size_t>(i)];
    switch (t.type) {
      case ort::kFloat: x = t.as<float>()[i]; break;
      case ort::kFloat16: x = from_half(t.as<uint16_t>()[i]); break;
      case ort::kBfloat16: x = from_bf16(t.as<uint16_t>()[i]); break;
      default: fail("a vector isn't floating-point");
    }
  }
}

}  // namespace

// Counts what is made of the file's weights: far more than they take means a program that names them again and again.
void OrtProgram::charge(int64_t bytes) {
  budget_ -= bytes;
  if (bytes < 0 || budget_ < 0) fail("the program makes more of the weights than there is");
}

OrtProgram::OrtProgram(const Info& info) {
  for (size_t n = 0; n < info.inputs(); ++n) budget_ += info.constant(n).count() * 16;
  Reader in(info.bytes("program"));
  if (in.word() != kMagic || in.word() != kVersion || in.word() != static_cast<int32_t>(sizeof(Instruction) / 4))
    fail(
        "the file was written for another version of the library; export the model again, or open it without"
        " the library");
  const int32_t vocab = in.size();
  if (vocab <= 0) fail("the attribute 'program' is malformed");
  model_ = std::make_unique<Model>(kernels_here(), vocab);
  std::vector<int32_t> widths;
  for (int32_t n = in.count(); n > 0; --n) widths.push_back(in.size());
  std::vector<CacheShape> caches;
  for (int32_t n = in.count(); n > 0; --n) {
    const int32_t heads = in.size(), dim = in.size(), value_dim = in.size(), latent = in.size(), key_scales = in.word(), value_scales = in.word();
    if (heads <= 0 || dim <= 0 || value_dim <= 0 || dim > kMaxDim || value_dim > kMaxDim)
      fail("heads of more than 640 channels, or of none");
    caches.push_back({heads, dim, value_dim, latent, key_scales, value_scales});
    const int32_t past_keys = in.word(), past_values = in.word(), keys = in.word(), values = in.word();
    io_.caches.push_back({past_keys, past_values, keys, values});
  }
  for (int32_t* input : {&io_.ids, &io_.mask, &io_.positions, &io_.prefix, &io_.keep, &io_.types}) *input = in.word();
  io_.slots = in.word() != 0;
  for (int32_t n = in.count(); n > 0; --n) io_.outs.push_back(in.word());
  auto require = [](int32_t number, int32_t first, size_t count) {
    if (number < first || number >= static_cast<int64_t>(count)) fail("the attribute 'program' names an input or output that doesn't exist");
  };
  for (int32_t input : {io_.ids, io_.mask, io_.positions, io_.prefix, io_.keep, io_.types}) require(input, -1, info.inputs());
  for (const CacheIo& io : io_.caches) {
    for (int32_t input : {io.past_keys, io.past_values}) require(input, -1, info.inputs());
    for (int32_t output : {io.keys, io.values}) require(output, -1, info.outputs());
  }
  for (int32_t output : io_.outs) require(output, 0, info.outputs());
  read_matrices(in, info);
  read_vectors(in, info);
  for (int32_t n = in.count(); n > 0; --n) {
    Rotation r;
    r.vector = in.word(), r.rotated = in.size(), r.magnitude = in.number();
    r.frequencies = in.numbers(in.count());
    bool fits = r.vector >= 0 && r.vector < static_cast<int32_t>(model_->vectors.size()) && r.rotated > 0 && r.rotated % 2 == 0;
    for (int32_t changes = in.count(); changes > 0; --changes) {
      const int32_t length = in.size(), row = in.size();
      fits = fits && (int64_t{row} + 1) * (r.rotated / 2) <= static_cast<int64_t>(r.frequencies.size()) &&
             (r.changes.empty() ? length == 0 : length > r.changes.back().first);
      r.changes.emplace_back(length, row);
    }
    for (const Rotation& other : rotations_) fits = fits && other.vector != r.vector;
    if (!fits || r.changes.empty()) fail("a rotation is malformed");
    rotations_.push_back(std::move(r));
  }
  cover(64);
  std::vector<Instruction> program(static_cast<size_t>(in.count(sizeof(Instruction) / 4)));
  for (Instruction& i : program) std::memcpy(&i, in.take(sizeof(Instruction) / 4), sizeof(Instruction));
  model_->set_program(std::move(widths), std::move(program), std::move(caches));
  for (const Instruction& i : model_->program) {
    if (i.op == Op::kLookup) limit_ = std::min(limit_, model_->matrices[static_cast<size_t>(i.matrix)].rows - i.count);
    const bool rotates = (i.op == Op::kAppend || i.op == Op::kHeads) && i.table >= 0;
    if (rotates && std::none_of(rotations_.begin(), rotations_.end(),
                                [&](const Rotation& r) { return r.vector == i.table && r.rotated == i.rotated; }))
      fail("an instruction's rotation isn't declared");
  }
}

void OrtProgram::read_matrices(Reader& in, const Info& info) {
  struct Fill {
    int32_t tile, step, outputs;
    const uint8_t* data;
    const uint16_t* scales;
  };
  const MappedFiles files;  // ONNX Runtime maps external data
  for (int32_t n = in.count(); n > 0; --n) {
    const int32_t number = in.word();
    if (number < 0 || number > static_cast<int32_t>(Kind::kQ4Exact)) fail("unknown kind of matrix");
    const Kind kind = static_cast<Kind>(number);
    const int32_t rows = in.size(), cols = in.size(), tiles = in.size();
    const int bits = kind == Kind::kQ4 || kind == Kind::kQ4Exact ? 4 : kind == Kind::kF32 ? 32 : grouped(kind) ? 8 : 16;
    std::vector<Fill> fills;
    int64_t filled = 0, needed = 0;
    for (int32_t f = in.count(); f > 0; --f) {
      const int32_t input = in.word(), scales = in.word(), tile = in.word(), step = in.word(), outputs = in.size(), entry = in.word();
      const int64_t numbers = int64_t{outputs} * cols;
      if (numbers > INT64_MAX / 1024) fail("a matrix is too large");
      charge((int64_t{outputs} + kLanes - 1) / kLanes * kLanes * cols * bits / 8);
      if (numbers <= 0 || entry >= INT64_MAX / 1024 / numbers) fail("a stack has fewer entries than the program says");
      const int64_t at = std::max(entry, 0) * numbers;  // the first number of a stack's entry
      const Tensor w = weight(info, input, grouped(kind) ? ort::kUint8 : type_of(kind), (at + numbers) * (grouped(kind) ? bits : 8) / 8);
      const uint16_t* factors = nullptr;
      if (grouped(kind)) factors = weight(info, scales, ort::kFloat16, (at + numbers) / kGroup).as<uint16_t>() + at / kGroup;
      fills.push_back({tile, step, outputs, w.as<uint8_t>() + at * bits / 8, factors});
      filled += outputs, needed += (int64_t{outputs} + kLanes - 1) / kLanes;
    }
    if (filled != rows || needed != tiles) fail("a matrix isn't filled");  // before it takes memory
    const int matrix = model_->add_matrix(kind, rows, cols, tiles);
    for (const Fill& f : fills) {
      model_->fill(matrix, f.tile, f.step, 0, f.outputs, f.data, f.scales);
      files.release(f.data, static_cast<size_t>(int64_t{f.outputs} * cols * bits / 8));
    }
  }
}

void OrtProgram::read_vectors(Reader& in, const Info& info) {
  for (int32_t n = in.count(); n > 0; --n) {
    std::vector<float> values;
    for (int32_t pieces = in.count(); pieces > 0; --pieces) {
      const bool inline_numbers = in.word() != 0;
      const int32_t input = inline_numbers ? -1 : in.word(), count = inline_numbers ? in.count() : in.size();
      if (inline_numbers) {
        const std::vector<float> more = in.numbers(count);
        values.insert(values.end(), more.begin(), more.end());
      } else {
        charge(int64_t{count} * 4);
        widen(weight(info, input, ort::kUndefined, count), count, values);
      }
    }
    model_->add_vector(values.data(), static_cast<int64_t>(values.size()));
  }
}

void OrtProgram::cover(int64_t positions) {
  if (positions <= covered_) return;
  positions = std::max(positions, 2 * covered_);
  for (const Rotation& r : rotations_) {
    model_->vectors[static_cast<size_t>(r.vector)].resize(static_cast<size_t>(positions) * static_cast<size_t>(r.rotated));
    if (!r.per_length()) turn(r, covered_, positions, 0);
  }
  covered_ = positions;
}

void OrtProgram::cover_in(int64_t length, const std::vector<int32_t>& positions) {
  for (const Rotation& r : rotations_)
    if (r.per_length())
      for (int32_t p : positions) turn(r, p, p + 1, length);
}

// Cosines and sines of positions [first, end) in a sequence of a length: of float32 angles, as in the graph.
void OrtProgram::turn(const Rotation& r, int64_t first, int64_t end, int64_t length) {
  auto later = [](int64_t wanted, const std::pair<int32_t, int32_t>& change) { return wanted < change.first; };
  const int64_t row = std::prev(std::upper_bound(r.changes.begin(), r.changes.end(), length, later))->second;
  const size_t half = static_cast<size_t>(r.rotated) / 2;
  const float* frequencies = r.frequencies.data() + static_cast<size_t>(row) * half;
  float* table = model_->vectors[static_cast<size_t>(r.vector)].data();
  for (int64_t p = first; p < end; ++p)
    for (size_t f = 0; f < half; ++f) {
      const double angle = static_cast<double>(static_cast<float>(p) * frequencies[f]);
      float* to = table + static_cast<size_t>(p) * 2 * half;
      to[f] = static_cast<float>(std::cos(angle) * static_cast<double>(r.magnitude));
      to[half + f] = static_cast<float>(std::sin(angle) * static_cast<double>(r.magnitude));
    }
}

Tensor integers(const Context& context, int32_t index, const char* name, size_t rank) {
  Tensor t = context.input(static_cast<size_t>(index));
  if (t.type != ort::kInt64 || t.shape.size() != rank)
    throw std::runtime_error(std::string("edgeformer: ") + name + " must be int64 of rank " + std::to_string(rank));
  return t;
}

}  // namespace edgeformer
