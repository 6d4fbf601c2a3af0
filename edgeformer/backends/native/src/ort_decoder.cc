#include "ort_decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <thread>

#include "half.h"
#include "mapped_files.h"

namespace edgeformer {

// ------------------------------------------------------------------------------------------------------------- threads

PoolCrew::PoolCrew() : size_(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u))) {}

void PoolCrew::run(const std::function<void(int)>& work) {
  std::atomic<int> arrived{0};
  std::atomic<bool> over{false};
  context->parallel(kMostThreads, [&](size_t) {
    if (over.load(std::memory_order_acquire)) return;
    work(arrived.fetch_add(1));
    over.store(true, std::memory_order_release);  // a thread leaves when every phase is done
  });
  seen_ = std::max(seen_, arrived.load());
  if (++steps_ % kStepsPerCount == 0) {
    size_ = seen_;
    seen_ = 1;
  }
}

// ------------------------------------------------------------------------------------------------------------- creation

// The program's words; every count is compared with what is left.
class DecoderBase::Reader {
 public:
  explicit Reader(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {
    if (bytes_.size() % 4 != 0) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is cut off");
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
    if (made < 0) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is malformed");
    return made;
  }
  // Of items that follow, of so many words at least.
  int32_t count(size_t words = 1) {
    const int32_t made = size();
    if (static_cast<size_t>(made) > (bytes_.size() - at_) / 4 / words) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is cut off");
    return made;
  }
  std::vector<float> numbers(int32_t count) {
    std::vector<float> made(static_cast<size_t>(count));
    if (count > 0) std::memcpy(made.data(), take(made.size()), made.size() * 4);
    return made;
  }
  const uint8_t* take(size_t words) {
    if (words > (bytes_.size() - at_) / 4) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is cut off");
    const uint8_t* made = bytes_.data() + at_;
    at_ += words * 4;
    return made;
  }

 private:
  std::vector<uint8_t> bytes_;
  size_t at_ = 0;
};

namespace {

constexpr int32_t kMagic = 0x4d504645, kVersion = 2;  // "EFPM"

// An initializer of the expected type and size.
Tensor weight(const Info& info, int32_t index, int type, int64_t count) {
  const std::string which = "edgeformer::Decoder: input " + std::to_string(index);
  if (index < 0 || static_cast<size_t>(index) >= info.inputs()) throw std::runtime_error(which + " doesn't exist");
  const Tensor t = info.constant(static_cast<size_t>(index));
  if (t.data == nullptr) throw std::runtime_error(which + " must be an initializer");
  if (type != ort::kUndefined && t.type != type) throw std::runtime_error(which + " has another type than the program says");
  if (t.count() < count) throw std::runtime_error(which + " is smaller than the program says");
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
      default: throw std::runtime_error("edgeformer::Decoder: a vector isn't floating-point");
    }
  }
}

}  // namespace

// Counts what is made of the file's weights: far more than they take means a program that names them again and again.
void DecoderBase::charge(int64_t bytes) {
  budget_ -= bytes;
  if (bytes < 0 || budget_ < 0) throw std::runtime_error("edgeformer::Decoder: the program makes more of the weights than there is");
}

DecoderBase::DecoderBase(const Info& info, int cache_type) : cache_type_(cache_type) {
  for (size_t n = 0; n < info.inputs(); ++n) budget_ += info.constant(n).count() * 16;
  Reader in(info.bytes("program"));
  if (in.word() != kMagic || in.word() != kVersion || in.word() != static_cast<int32_t>(sizeof(Instruction) / 4))
    throw std::runtime_error(
        "edgeformer::Decoder: the file was written for another version of the library; export the model again, or open it without"
        " the library");
  const int32_t vocab = in.size();
  if (vocab <= 0) throw std::runtime_error("edgeformer::Decoder: the attribute 'program' is malformed");
  model_ = std::make_unique<Model>(kernels_here(), vocab);
  std::vector<int32_t> widths;
  for (int32_t n = in.count(); n > 0; --n) widths.push_back(in.size());
  std::vector<CacheShape> caches;
  for (int32_t n = in.count(); n > 0; --n) {
    const int32_t heads = in.size(), dim = in.size(), value_dim = in.size();
    if (heads <= 0 || dim <= 0 || value_dim <= 0 || dim > kMaxDim || value_dim > kMaxDim)
      throw std::runtime_error("edgeformer::Decoder: heads of more than 512 channels, or of none");
    caches.push_back({heads, dim, value_dim});
    const int32_t past_keys = in.word(), past_values = in.word(), keys = in.word(), values = in.word();
    io_.push_back({past_keys, past_values, keys, values});
  }
  ids_ = in.word(), mask_ = in.word(), positions_ = in.word(), prefix_ = in.word(), keep_ = in.word();
  auto require = [](int32_t number, int32_t first, size_t count) {
    if (number < first || number >= static_cast<int64_t>(count))
      throw std::runtime_error("edgeformer::Decoder: the attribute 'program' names an input or output that doesn't exist");
  };
  for (int32_t input : {ids_, mask_, keep_}) require(input, 0, info.inputs());
  for (int32_t input : {positions_, prefix_}) require(input, -1, info.inputs());
  for (const CacheIo& io : io_) {
    for (int32_t input : {io.past_keys, io.past_values}) require(input, 0, info.inputs());
    for (int32_t output : {io.keys, io.values}) require(output, 1, info.outputs());
  }
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
    if (!fits || r.changes.empty()) throw std::runtime_error("edgeformer::Decoder: a rotation is malformed");
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
      throw std::runtime_error("edgeformer::Decoder: an instruction's rotation isn't declared");
  }
  executor_ = std::make_unique<Executor>(*model_, crew_);
}

void DecoderBase::read_matrices(Reader& in, const Info& info) {
  struct Fill {
    int32_t tile, step, outputs;
    const uint8_t* data;
    const uint16_t* scales;
  };
  const MappedFiles files;  // ONNX Runtime maps external data
  for (int32_t n = in.count(); n > 0; --n) {
    const int32_t number = in.word();
    if (number < 0 || number > static_cast<int32_t>(Kind::kQ4Exact)) throw std::runtime_error("edgeformer::Decoder: unknown kind of matrix");
    const Kind kind = static_cast<Kind>(number);
    const int32_t rows = in.size(), cols = in.size(), tiles = in.size();
    const int bits = kind == Kind::kQ4 || kind == Kind::kQ4Exact ? 4 : kind == Kind::kF32 ? 32 : grouped(kind) ? 8 : 16;
    std::vector<Fill> fills;
    int64_t filled = 0, needed = 0;
    for (int32_t f = in.count(); f > 0; --f) {
      const int32_t input = in.word(), scales = in.word(), tile = in.word(), step = in.word(), outputs = in.size(), entry = in.word();
      const int64_t numbers = int64_t{outputs} * cols;
      charge(numbers * bits / 8);
      if (grouped(kind)) {
        const Tensor codes = weight(info, input, ort::kUint8, numbers * bits / 8);
        const Tensor factors = weight(info, scales, ort::kFloat16, numbers / kGroup);
        fills.push_back({tile, step, outputs, codes.as<uint8_t>(), factors.as<uint16_t>()});
      } else {
        const Tensor w = weight(info, input, type_of(kind), numbers);
        if (numbers <= 0 || entry >= w.count() / numbers) throw std::runtime_error("edgeformer::Decoder: a stack has fewer entries than the program says");
        fills.push_back({tile, step, outputs, w.as<uint8_t>() + std::max(entry, 0) * numbers * bits / 8, nullptr});
      }
      filled += outputs, needed += (int64_t{outputs} + kLanes - 1) / kLanes;
    }
    if (filled != rows || needed != tiles) throw std::runtime_error("edgeformer::Decoder: a matrix isn't filled");  // before it takes memory
    const int matrix = model_->add_matrix(kind, rows, cols, tiles);
    for (const Fill& f : fills) {
      model_->fill(matrix, f.tile, f.step, 0, f.outputs, f.data, f.scales);
      files.release(f.data, static_cast<size_t>(int64_t{f.outputs} * cols * bits / 8));
    }
  }
}

void DecoderBase::read_vectors(Reader& in, const Info& info) {
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

// Computes the rotations of at least so many positions; those that depend on the length, in each step.
void DecoderBase::cover(int64_t positions) {
  if (positions <= covered_) return;
  positions = std::max(positions, 2 * covered_);
  for (const Rotation& r : rotations_) {
    model_->vectors[static_cast<size_t>(r.vector)].resize(static_cast<size_t>(positions) * static_cast<size_t>(r.rotated));
    if (!r.per_length()) turn(r, covered_, positions, 0);
  }
  covered_ = positions;
}

// Cosines and sines of positions [first, end) in a sequence of a length: of float32 angles, as in the graph.
void DecoderBase::turn(const Rotation& r, int64_t first, int64_t end, int64_t length) {
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

// --------------------------------------------------------------------------------------------------------------- a step

namespace {

Tensor integers(const Context& context, int32_t index, const char* name, size_t rank) {
  Tensor t = context.input(static_cast<size_t>(index));
  if (t.type != ort::kInt64 || t.shape.size() != rank)
    throw std::runtime_error(std::string("edgeformer::Decoder: ") + name + " must be int64 of rank " + std::to_string(rank));
  return t;
}

}  // namespace

void DecoderBase::compute(const Context& context) {
  std::lock_guard<std::mutex> one_at_a_time(mutex_);  // sessions may run on several threads
  const Tensor ids = integers(context, ids_, "input_ids", 2), mask = integers(context, mask_, "attention_mask", 2);
  const int64_t batch = ids.shape[0], count = ids.shape[1], total = mask.shape[1], start = total - count;
  if (batch <= 0 || count <= 0 || mask.shape[0] != batch || start < 0)
    throw std::runtime_error("edgeformer::Decoder: attention_mask must be [batch, past + new], as long as past and input_ids together");
  const Tensor keep = integers(context, keep_, "num_logits_to_keep", 1);
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
  if (positions_ >= 0) {
    given = integers(context, positions_, "position_ids", 2);
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
  if (furthest >= limit_) throw std::runtime_error("edgeformer::Decoder: a position is beyond the model's table of positions");
  if (furthest > std::max<int64_t>(total, covered_) + (int64_t{1} << 20)) throw std::runtime_error("edgeformer::Decoder: a position is out of range");
  cover(furthest + 1);
  for (const Rotation& r : rotations_)
    if (r.per_length())
      for (int32_t p : positions) turn(r, p, p + 1, furthest + 1);
  std::vector<int32_t> prefix;
  if (prefix_ >= 0) {
    const Tensor lengths = integers(context, prefix_, "prefix_length", 1);
    if (lengths.count() != batch) throw std::runtime_error("edgeformer::Decoder: prefix_length must be [batch]");
    for (int64_t b = 0; b < batch; ++b) prefix.push_back(static_cast<int32_t>(std::clamp<int64_t>(lengths.as<int64_t>()[b], 0, total)));
  }

  CacheLayout layout{cache_type_ == ort::kFloat ? CacheKind::kF32 : CacheKind::kF16, false, total};
  std::vector<CacheView> views;
  bool in_place = false;
  for (size_t n = 0; n < io_.size(); ++n) {
    const CacheShape& shape = model_->caches[n];
    auto past = [&](int32_t index, int64_t dim) {
      const Tensor t = context.input(static_cast<size_t>(index));
      if (t.type != cache_type_ || t.shape.size() != 4 || t.shape[0] != batch || t.shape[1] != shape.heads || t.shape[3] != dim ||
          t.shape[2] < start)
        throw std::runtime_error("edgeformer::Decoder: past keys and values must be [batch, heads, past or more, dim]");
      if (index == io_[0].past_keys) layout.past_capacity = t.shape[2];
      if (t.shape[2] != layout.past_capacity) throw std::runtime_error("edgeformer::Decoder: past keys and values differ in length");
      return t;
    };
    const Tensor keys = past(io_[n].past_keys, shape.dim), values = past(io_[n].past_values, shape.value_dim);
    layout.capacity = std::max(layout.past_capacity, total);
    const std::vector<int64_t> key_shape{batch, shape.heads, layout.capacity, shape.dim};
    const std::vector<int64_t> value_shape{batch, shape.heads, layout.capacity, shape.value_dim};
    CacheView view;
    view.keys = static_cast<uint8_t*>(context.output(static_cast<size_t>(io_[n].keys), key_shape));
    view.values = static_cast<uint8_t*>(context.output(static_cast<size_t>(io_[n].values), value_shape));
    if (n == 0) in_place = view.keys == keys.data;
    if (in_place != (view.keys == keys.data) || in_place != (view.values == values.data))
      throw std::runtime_error("edgeformer::Decoder: bind all keys and values in place, or none");
    if (!in_place) view.past_keys = keys.as<uint8_t>(), view.past_values = values.as<uint8_t>();  // null where they are empty
    views.push_back(view);
  }
  float* logits = static_cast<float*>(context.output(0, {batch, kept, model_->vocab}));
  crew_.context = &context;
  executor_->step({ids.as<int64_t>(), positions.data(), queries.data(), counted.empty() ? nullptr : counted.data(),
                   valid.empty() ? nullptr : valid.data(), prefix.empty() ? nullptr : prefix.data(), start, count, kept, logits},
                  batch, covered_, views.data(), layout);
}

}  // namespace edgeformer
