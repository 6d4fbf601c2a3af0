// Metal for a compiler that only parses: address spaces are real, functions are declarations. What g++ can't see in the
// emulator (a device pointer passed as a threadgroup one, a write to a constant) is an error here.
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned long size_t;
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef _Float16 half;
typedef half float16_t;
typedef __bf16 bfloat;  // converts implicitly, which Metal's doesn't; the emulator's notices that
typedef bfloat bfloat16_t;
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define INFINITY __builtin_inff()

namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <class T> T simd_sum(T);
template <class T> T simd_max(T);
template <class T> T simd_broadcast(T, ushort);
template <class T> T simd_shuffle_xor(T, ushort);
template <class T> T max(T, T);
template <class T> T min(T, T);
namespace precise {
float exp(float);
float rsqrt(float);
float sin(float);
float cos(float);
float tanh(float);
}  // namespace precise
}  // namespace metal
struct uint3 {
  uint x, y, z;
};
using namespace metal;
