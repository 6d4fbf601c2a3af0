// The C ABI. Functions return 0, or -1 and leave a message for ef_error; no exception crosses.
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "encoder.h"

#if defined(_WIN32)
#define EF_EXPORT extern "C" __declspec(dllexport)
#else
#define EF_EXPORT extern "C" __attribute__((visibility("default")))
#endif

using namespace edgeformer;

namespace {

thread_local std::string message;

template <typename Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    message = "out of memory; use a smaller capacity, batch or model";
    return -1;
  } catch (const std::exception& e) {
    message = e.what();
    return -1;
  }
}

}  // namespace

EF_EXPORT const char* ef_error() { return message.c_str(); }

// The name of the instruction set that `ef_model_new` would choose; null if `isa` names none that runs here.
EF_EXPORT const char* ef_isa(const char* isa) {
  const Kernels* k = choose_kernels(isa);
  return k == nullptr ? nullptr : k->name;
}

EF_EXPORT int ef_instruction_size() { return static_cast<int>(sizeof(Instruction)); }

EF_EXPORT int ef_model_new(const char* isa, int32_t vocab, Model** out) {
  return guarded([&] {
    const Kernels* k = choose_kernels(isa);
    if (k == nullptr) throw std::invalid_argument("this processor has no such instruction set");
    *out = new Model(k, vocab);
  });
}

EF_EXPORT int ef_model_program(Model* model, const int32_t* widths, int32_t buffers, const Instruction* program, int32_t length,
                               const int32_t* caches, int32_t cache_count) {
  return guarded([&] {
    std::vector<CacheShape> shapes;
    for (int32_t i = 0; i < cache_count; ++i) shapes.push_back({caches[4 * i], caches[4 * i + 1], caches[4 * i + 2], caches[4 * i + 3], -1, -1});
    model->set_program({widths, widths + buffers}, {program, program + length}, std::move(shapes));
  });
}

EF_EXPORT void ef_model_delete(Model* model) { delete model; }

EF_EXPORT int ef_matrix_new(Model* model, int32_t kind, int64_t rows, int64_t cols, int64_t tiles) {
  int made = -1;
  return guarded([&] { made = model->add_matrix(static_cast<Kind>(kind), rows, cols, tiles); }) == 0 ? made : -1;
}

EF_EXPORT int ef_matrix_fill(Model* model, int32_t matrix, int64_t tile, int64_t step, int64_t row, int64_t count,
                             const void* data, const uint16_t* scales) {
  return guarded([&] { model->fill(matrix, tile, step, row, count, data, scales); });
}

EF_EXPORT int ef_vector_new(Model* model, const float* data, int64_t count) {
  int made = -1;
  return guarded([&] { made = model->add_vector(data, count); }) == 0 ? made : -1;
}

// Replaces `count` numbers of a vector from `start` on; no session of the model may be in a step.
EF_EXPORT int ef_vector_set(Model* model, int32_t vector, int64_t start, const float* data, int64_t count) {
  return guarded([&] { model->set_vector(vector, start, data, count); });
}

EF_EXPORT int ef_session_new(const Model* model, int64_t batch, int64_t capacity, int32_t threads, int32_t cache, Session** out) {
  return guarded([&] { *out = new Session(*model, batch, capacity, threads, static_cast<CacheKind>(cache)); });
}

EF_EXPORT void ef_session_delete(Session* session) { delete session; }

// Adds each instruction's nanoseconds to the caller's array during later steps; null stops.
EF_EXPORT void ef_session_profile(Session* session, int64_t* nanoseconds) { session->profile(nanoseconds); }

EF_EXPORT int ef_session_step(Session* session, const int64_t* ids, const int32_t* positions, const int32_t* query_positions,
                              const int32_t* key_positions, const uint8_t* valid, const int32_t* prefix, int64_t start,
                              int64_t count, int64_t keep, float* out) {
  return guarded([&] {
    session->step({ids, positions, query_positions, key_positions, valid, prefix, start, count, keep, out});
  });
}

EF_EXPORT int ef_encoder_new(const Model* model, int64_t positions, int32_t slots, int32_t threads, EncoderSession** out) {
  return guarded([&] { *out = new EncoderSession(*model, positions, slots != 0, threads); });
}

EF_EXPORT void ef_encoder_delete(EncoderSession* session) { delete session; }

EF_EXPORT void ef_encoder_profile(EncoderSession* session, int64_t* nanoseconds) { session->profile(nanoseconds); }

EF_EXPORT int ef_encoder_run(EncoderSession* session, const int64_t* ids, const int64_t* mask, const int64_t* types, int64_t texts,
                             int64_t length, float* const* outs) {
  return guarded([&] { session->run({ids, mask, types, texts, length, outs}); });
}
