// What the native operations for XLA's CPU client share: vectors, dtypes, threads and memory.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace flaxres {
namespace {

namespace ffi = xla::ffi;

// Lanes of a vector, and number of vector registers for sums. The other registers hold operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kSums = 24;
#elif defined(__AVX__)
constexpr int kLanes = 8, kSums = 12;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kSums = 24;
#else
constexpr int kLanes = 4, kSums = 12;
#endif
using Vector = float __attribute__((vector_size(4 * kLanes)));

inline void Store(float* to, Vector value) { std::memcpy(to, &value, sizeof(value)); }
// Stores the first `count` lanes.
inline void StoreSome(float* to, Vector value, int64_t count) {
  if (count > 0) std::memcpy(to, &value, std::min<int64_t>(count, kLanes) * sizeof(float));
}
inline Vector LoadSome(const float* from, int64_t count) {
  Vector value = {};
  if (count > 0) std::memcpy(&value, from, std::min<int64_t>(count, kLanes) * sizeof(float));
  return value;
}
inline int64_t Quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The dtypes of a convolution. A `Number` is what its arrays hold, a `Word` what a lane of an
// operand holds: kPair numbers, whose products are added to the lane of a sum in one instruction.
// `Result` and `Shortcut` are the dtypes of its result and of what is added to that.
struct Float32 {
  using Number = float;
  using Word = float;
  using Words = Vector;
  using Sums = Vector;
  using Result = Float32;
  using Shortcut = Float32;
  static constexpr int kPair = 1;

  static Word Pair(Number first, Number) { return first; }
  static Vector AddProducts(Vector sum, Word x, Words y) { return sum + x * y; }
  static Vector Floats(Sums sum) { return sum; }
  static void StoreNumbers(Number* to, Vector sum, int64_t count) { StoreSome(to, sum, count); }
  static Vector LoadNumbers(const Number* from, int64_t count) { return LoadSome(from, count); }
};

#if defined(__AVX512BF16__)
struct BFloat16 {
  using Number = uint16_t;
  using Word = uint32_t;
  using Words = uint32_t __attribute__((vector_size(64)));
  using Sums = Vector;
  using Result = BFloat16;
  using Shortcut = BFloat16;
  static constexpr int kPair = 2;

  static Word Pair(Number first, Number second) { return first | uint32_t{second} << 16; }
  static Vector AddProducts(Vector sum, Word x, Words y) {
    return reinterpret_cast<Vector>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(_mm512_set1_epi32(x)),
        reinterpret_cast<__m512bh>(y)));
  }
  static Vector Floats(Sums sum) { return sum; }
  static void StoreNumbers(Number* to, Vector sum, int64_t count) {
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(sum));
    if (count > 0) std::memcpy(to, &rounded, std::min<int64_t>(count, kLanes) * sizeof(Number));
  }
  static Vector LoadNumbers(const Number* from, int64_t count) {
    Number some[kLanes] = {};
    if (count > 0) std::memcpy(some, from, std::min<int64_t>(count, kLanes) * sizeof(Number));
    __m256i numbers;
    std::memcpy(&numbers, some, sizeof(numbers));
    return reinterpret_cast<Vector>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
  }
};
#endif

#if defined(__AVX512VNNI__)
// Numbers of 8 bits without a sign, times kernels of 8 bits with one.
struct UInt8 {
  using Number = uint8_t;
  using Word = uint32_t;
  using Words = uint32_t __attribute__((vector_size(64)));
  using Sums = int32_t __attribute__((vector_size(64)));
  static constexpr int kPair = 4;

  static Sums AddProducts(Sums sum, Word x, Words y) {
    return reinterpret_cast<Sums>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(x),
                            reinterpret_cast<__m512i>(y)));
  }
  static Vector Floats(Sums sum) {
    return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)));
  }
  // Rounds to whole numbers from 0 to 255.
  static void StoreNumbers(Number* to, Vector value, int64_t count) {
    const __m512i whole = _mm512_cvtps_epi32(reinterpret_cast<__m512>(value));
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
    if (count > 0) std::memcpy(to, &bytes, std::min<int64_t>(count, kLanes));
  }
  static Vector LoadNumbers(const Number* from, int64_t count) {
    __m128i bytes = _mm_setzero_si128();
    if (count > 0) std::memcpy(&bytes, from, std::min<int64_t>(count, kLanes));
    return Floats(reinterpret_cast<Sums>(_mm512_cvtepu8_epi32(bytes)));
  }
};
#endif

template <typename Type>
inline typename Type::Words Load(const typename Type::Word* from) {
  typename Type::Words value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Flushes denormal numbers to zero on the current thread while it lives.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(before_) | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
  FlushDenormals() {}
#endif

 private:
  uint64_t before_ = 0;
};

inline int64_t Threads(const ffi::ThreadPool& pool) {
  return std::max<int64_t>(1, pool.num_threads());
}

// A task of XLA's pool sees what was written before it was scheduled. The thread sanitizer doesn't
// know: the pool is compiled without it (tools/sanitized.py).
#if defined(__SANITIZE_THREAD__)
inline char scheduled;
inline void BeforeTasks() { __tsan_release(&scheduled); }
inline void WithinTask() { __tsan_acquire(&scheduled); }
#else
inline void BeforeTasks() {}
inline void WithinTask() {}
#endif

// Calls work(0) to work(count - 1) on this thread and on threads of the pool that become free while
// work is left. This thread never waits for a thread that has not started, so that concurrent
// handlers can't deadlock.
template <typename Work>
void Parallel(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> failed{false};
    int64_t count;
    const Work* work;
    std::mutex mutex;
    std::condition_variable finished;

    void Run() {
      FlushDenormals flush;
      for (int64_t i; (i = next.fetch_add(1)) < count;) {
        try {
          (*work)(i);
        } catch (const std::bad_alloc&) {
          failed = true;
        }
        if (done.fetch_add(1) + 1 == count) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  };
  auto shared = std::make_shared<Shared>();
  shared->count = count;
  shared->work = &work;
  try {
    for (int64_t i = std::min(Threads(pool), count) - 1; i > 0; --i) {
      BeforeTasks();
      pool.Schedule([shared] {
        WithinTask();
        shared->Run();
      });
    }
  } catch (const std::bad_alloc&) {  // scheduled tasks must end before this frame does
  }
  shared->Run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == count; });
  if (shared->failed) throw std::bad_alloc();
}

// Runs a handler's work; XLA can't catch exceptions.
template <typename Work>
ffi::Error Guarded(const Work& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "flaxres: no memory for an operation");
  }
  return ffi::Error::Success();
}

// Returns memory of the current thread, which keeps it for later calls.
template <typename Word>
Word* Scratch(int64_t size) {
  static thread_local std::vector<Word> scratch;
  if (static_cast<int64_t>(scratch.size()) < size) scratch.resize(size);
  return scratch.data();
}

}  // namespace
}  // namespace flaxres
