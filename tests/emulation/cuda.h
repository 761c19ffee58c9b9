// CUDA on the CPU: as much of it as executes the .cu files of torch_utils/ops/csrc, for tests without a GPU.
//
// Every thread of a block is a fiber with a stack of its own. A warp runs until all its lanes wait at a barrier or have
// ended, then the next warp does; in what order is chosen (`Order`). What a GPU would answer with a wrong result, a
// hang or nothing at all is an error here: barriers that only some threads reach, shuffles that lanes are missing from,
// more shared memory than a block has, a grid beyond the limits, a launch without a device guard or that nobody checks.
// Shared memory and results hold NaN at first. Built with -fsanitize=address, every array has its exact size; with
// -fsanitize=thread, two threads of a launch are ordered by its barriers alone, and two blocks by nothing.
//
// rewrite.py includes this file in place of the headers of c10/cuda, and turns <<< >>> and __shared__ into calls of it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <math.h>  // exp(float), as in device code

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index3 {
  unsigned x, y, z;
};
struct dim3 {
  int64_t x, y, z;
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}
};
inline Index3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

namespace emulated {

constexpr int kWarp = 32;
constexpr size_t kSharedMemory = 48 << 10;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;
#else
constexpr size_t kGuard = 64;  // bytes behind shared memory that nobody may write
#endif

inline int number(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

// What a test sets and reads, through the functions at the end of this file.
enum Order { kForward, kReverse, kRandom, kOrders };
inline int orders = number("EMULATED_ORDERS", kOrders);  // in which every op is run, and must give the same bits
inline std::vector<int64_t> selected;  // of a launch's blocks, for tensors too large to run all of them; empty: all
inline int bug = number("EMULATED_BUG", 0);  // of bugs.py; 0: none
inline int64_t launches = 0, threads = 0;
// Of every loop that is not unrolled, by the number that rewrite.py gives it.
inline int64_t trips[1 << 14];

inline Order order = kForward;
inline std::mt19937 random;
inline int guards = 0;          // that are alive
inline bool unchecked = false;  // the last launch, by C10_CUDA_KERNEL_LAUNCH_CHECK
inline std::string error;       // of the block that runs

// --- fibers ----------------------------------------------------------------------------------------------------------

enum State { kReady, kAtBarrier, kInShuffle, kEnded };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  Context context;
  State state = kEnded;
  int line = 0;                // of the barrier where it waits
  int source = 0;              // the lane whose value a shuffle gives it
  alignas(16) char value[16];  // what it gives to a shuffle and is given
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
  int barriers = 0;
#endif
};

// The block that runs.
struct Block {
  std::vector<Fiber> fibers;
  Fiber* threads = nullptr;  // the same, without a function of the library, which ThreadSanitizer would look into
  Context main;
  int current = 0;
  const std::function<void()>* kernel = nullptr;
  size_t shared_bytes = 0;
  std::map<int, std::unique_ptr<char[]>> shared;  // arrays by the line that declares them; 0: the launch's
  std::vector<const char*> guards;                // what lies behind them
  int in_shuffle[kWarp] = {};                     // lanes of each warp
#if defined(__SANITIZE_ADDRESS__)
  const void* main_stack = nullptr;
  size_t main_size = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan_main = nullptr;
  char begin = 0, end = 0;           // of the launch
  std::unique_ptr<char[]> barriers;  // two in turn: a thread leaves one when others may have come to the next
#endif
};
inline Block block;

// To a fiber, or with `to` = −1 back to what runs the block. The sanitizers want to know.
NOT_OF_THE_KERNEL inline void switch_to(int to) {
  Fiber& fiber = block.threads[to < 0 ? block.current : to];
#if defined(__SANITIZE_ADDRESS__)
  void* frames = nullptr;
  if (to < 0) {
    __sanitizer_start_switch_fiber(fiber.state == kEnded ? nullptr : &frames, block.main_stack, block.main_size);
  } else {
    __sanitizer_start_switch_fiber(&frames, fiber.stack.get(), kStack);
  }
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to < 0 ? block.tsan_main : fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  to < 0 ? Context::jump(fiber.context, block.main) : Context::jump(block.main, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
}

// Where every fiber begins and ends.
NOT_OF_THE_KERNEL inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.main_stack, &block.main_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&block.begin);
#endif
  (*block.kernel)();
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&block.end);
#endif
  block.threads[block.current].state = kEnded;
  switch_to(-1);
  std::abort();
}

NOT_OF_THE_KERNEL inline void start(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack.get(), kStack);  // of a fiber before, which never returned
#endif
#if defined(__SANITIZE_THREAD__)
  fiber.tsan = __tsan_create_fiber(0), fiber.barriers = 0;
  fiber.stack.reset(new char[kStack]);  // two fibers that write to one stack would be a race
#endif
  fiber.context.begin(fiber.stack.get(), &run_thread);
  fiber.state = kReady;
}

NOT_OF_THE_KERNEL inline void resume(int thread) {
  block.current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
  switch_to(thread);
}

// --- what a kernel calls ---------------------------------------------------------------------------------------------

NOT_OF_THE_KERNEL inline void syncthreads(int line) {
  Fiber& fiber = block.threads[block.current];
  fiber.state = kAtBarrier, fiber.line = line;
#if defined(__SANITIZE_THREAD__)
  char* barrier = block.barriers.get() + fiber.barriers++ % 2;
  __tsan_release(barrier);
#endif
  switch_to(-1);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(barrier);
#endif
}

// The value that another lane of the warp gives; all 32 take part.
template <class T>
NOT_OF_THE_KERNEL T shuffle(unsigned mask, T value, int source) {
  const Unseen bookkeeping;
  static_assert(sizeof(T) <= sizeof(Fiber::value));
  const int warp = block.current / kWarp, first = warp * kWarp;
  Fiber& fiber = block.threads[block.current];
  if (mask != ~0u) error = "a shuffle of a part of a warp";
  if (int(block.fibers.size()) < first + kWarp) error = "a shuffle in a warp that is not full";
  memcpy(fiber.value, &value, sizeof(T));
  fiber.state = kInShuffle, fiber.source = source;
  if (++block.in_shuffle[warp] == kWarp) {
    char given[kWarp][sizeof(Fiber::value)];
    for (int lane = 0; lane < kWarp; lane++)
      memcpy(given[lane], block.threads[first + block.threads[first + lane].source].value, sizeof given[lane]);
    for (int lane = 0; lane < kWarp; lane++) {
      memcpy(block.threads[first + lane].value, given[lane], sizeof given[lane]);
      block.threads[first + lane].state = kReady;
    }
    block.in_shuffle[warp] = 0;
  }
  switch_to(-1);
  memcpy(&value, fiber.value, sizeof(T));
  return value;
}
inline int lane() { return block.current % kWarp; }

// What tensor cores make of the registers of a warp: see cuda.cuh. Each lane computes what it keeps.
template <class S>
NOT_OF_THE_KERNEL void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Unseen bookkeeping;
  struct Given {
    const uint32_t *a, *b;
  };
  const auto value = [](uint32_t pair, int which) {
    S s;
    s.x = uint16_t(which ? pair >> 16 : pair);
    return static_cast<float>(s);
  };
  shuffle(~0u, Given{a, b}, lane());  // until all lanes have given theirs
  const Fiber* warp = block.threads + block.current / kWarp * kWarp;
  const auto given = [&](int lane) {
    Given of;
    memcpy(&of, warp[lane].value, sizeof of);
    return of;
  };
  for (int r = 0; r < 4; r++) {
    const int row = lane() / 4 + 8 * (r / 2), column = 2 * (lane() % 4) + r % 2;
    for (int k = 0; k < 16; k++) {
      const int quarter = k % 8 / 2;
      c[r] += value(given(4 * (row % 8) + quarter).a[row / 8 + k / 8 * 2], k % 2) *
              value(given(4 * column + quarter).b[k / 8], k % 2);
    }
  }
  shuffle(~0u, Given{a, b}, lane());  // and until all have read them
}

// Follows the condition of a loop: counts how often its body is run.
NOT_OF_THE_KERNEL inline bool trip(int loop) {
  const Unseen bookkeeping;
  return ++trips[loop];
}

NOT_OF_THE_KERNEL inline char* shared_memory(int line, size_t bytes) {
  const Unseen bookkeeping;
  std::unique_ptr<char[]>& memory = block.shared[line];
  if (!memory) {
    memory.reset(new char[bytes + kGuard]);
    memset(memory.get(), 0xFF, bytes + kGuard);  // NaN in every type
    block.guards.push_back(memory.get() + bytes);
    if ((block.shared_bytes += bytes) > kSharedMemory) error = "more than 48 KB of shared memory";
  }
  return memory.get();
}
template <class Array>
Array& shared_array(int line) {
  return *reinterpret_cast<Array*>(shared_memory(line, sizeof(Array)));
}
inline char* launched_shared() { return shared_memory(0, 0); }

// --- launches --------------------------------------------------------------------------------------------------------

// Runs the threads in an order of warps, each as far as it comes, until all wait at a barrier or have ended.
NOT_OF_THE_KERNEL inline void run_to_barrier(std::vector<int>& turn) {
  const int threads = turn.size();
  int together = kWarp;  // threads that run side by side
  if (order == kRandom) {
    std::shuffle(turn.begin(), turn.end(), random);
    if (random() % 2) {
      together = threads;
    } else {
      const unsigned salt = random();
      const auto rank = [salt](int thread) { return (thread / kWarp * 2654435761u) ^ salt; };
      std::stable_sort(turn.begin(), turn.end(), [&](int a, int b) { return rank(a) < rank(b); });
    }
  }
  for (int first = 0; first < threads; first += together)
    for (bool any = true; any;) {
      any = false;
      for (int i = first; i < std::min(first + together, threads); i++)
        if (block.threads[turn[i]].state == kReady) resume(turn[i]), any = true;
    }
}

// Whether all have ended. Else all wait at one barrier, and go on from there.
NOT_OF_THE_KERNEL inline bool leave_barrier() {
  int ended = 0, waiting = 0, line = 0;
  for (const Fiber& fiber : block.fibers) {
    ended += fiber.state == kEnded;
    if (fiber.state != kAtBarrier) continue;
    if (waiting++ && fiber.line != line) error = "threads wait at different barriers";
    line = fiber.line;
  }
  const int threads = block.fibers.size();
  if (ended == threads) return true;
  if (ended + waiting < threads) {
    error = "deadlock: lanes wait in a shuffle that others of their warp never reach";
  } else if (ended) {
    error = "barrier divergence: threads have ended that others wait for";
  }
  for (Fiber& fiber : block.fibers) fiber.state = kReady;
  return false;
}

NOT_OF_THE_KERNEL inline void run_block(size_t shared) {
#if defined(__SANITIZE_THREAD__)
  block.barriers.reset(new char[2]);  // others than those of the block before
#endif
  block.shared.clear(), block.guards.clear(), block.shared_bytes = 0;
  memset(block.in_shuffle, 0, sizeof block.in_shuffle);
  shared_memory(0, shared);
  threads += block.fibers.size();
  for (Fiber& fiber : block.fibers) start(fiber);
  std::vector<int> turn(block.fibers.size());
  std::iota(turn.begin(), turn.end(), 0);
  if (order == kReverse) std::reverse(turn.begin(), turn.end());
  for (bool ended = false; !ended && error.empty(); ended = leave_barrier()) run_to_barrier(turn);
#if defined(__SANITIZE_THREAD__)
  for (Fiber& fiber : block.fibers) __tsan_destroy_fiber(fiber.tsan);  // it knows some thousands at once
#endif
  for (const char* guard : block.guards)
    if (!std::all_of(guard, guard + kGuard, [](char c) { return c == char(0xFF); }))
      error = "written beyond shared memory";
  const std::string what = std::exchange(error, "");
  TORCH_CHECK(what.empty(), "block ", blockIdx.x, ", ", blockIdx.y, ", ", blockIdx.z, ": ", what);
}

NOT_OF_THE_KERNEL inline std::vector<int64_t> blocks_in_order(int64_t count) {
  std::vector<int64_t> turn(selected);
  turn.erase(std::remove_if(turn.begin(), turn.end(), [=](int64_t b) { return b >= count; }), turn.end());
  if (selected.empty()) turn.resize(count), std::iota(turn.begin(), turn.end(), 0);
  if (order == kReverse) std::reverse(turn.begin(), turn.end());
  if (order == kRandom) std::shuffle(turn.begin(), turn.end(), random);
  return turn;
}

// kernel<<<grid, threads, shared, stream>>>(arguments...)
template <class... Parameters, class... Arguments>
NOT_OF_THE_KERNEL void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared, int /*stream*/,
                              Arguments... arguments) {
  const Unseen bookkeeping;
  TORCH_CHECK(guards > 0, "launched without a device guard");
  TORCH_CHECK(!unchecked, "the launch before was not checked");
  const auto within = [](int64_t size, int64_t most) { return size >= 1 && size <= most; };
  TORCH_CHECK(within(grid.x, INT32_MAX) && within(grid.y, 65535) && within(grid.z, 65535), "invalid grid ", grid.x,
              ", ", grid.y, ", ", grid.z);
  const int64_t count = threads.x * threads.y * threads.z;
  TORCH_CHECK(within(count, 1024), "invalid block of ", count, " threads");
  unchecked = true, launches++;
  gridDim = {unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)};
  blockDim = {unsigned(threads.x), unsigned(threads.y), unsigned(threads.z)};
  while (int64_t(block.fibers.size()) < count) block.fibers.emplace_back();
  block.fibers.resize(count);
  block.threads = block.fibers.data();
  const std::function<void()> run = [&]() NOT_OF_THE_KERNEL { kernel(static_cast<Parameters>(arguments)...); };
  block.kernel = &run;
#if defined(__SANITIZE_THREAD__)
  block.tsan_main = __tsan_get_current_fiber();
  for (Index3* index : {&threadIdx, &blockIdx}) AnnotateBenignRaceSized("", 0, index, sizeof *index, "index");
  __tsan_release(&block.begin);
#endif
  for (int64_t b : blocks_in_order(grid.x * grid.y * grid.z)) {
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    run_block(shared);
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&block.end);
#endif
}

// --- ops -------------------------------------------------------------------------------------------------------------

// A result in which the values that no thread writes are NaN.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor result = at::empty(sizes, options);
  if (result.numel() && selected.empty()) memset(result.mutable_data_ptr(), 0xFF, result.nbytes());
  return result;
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.strides() != b.strides()) return false;
  return a.numel() == 0 || memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}
template <class... Tensors>
bool same_bits(const std::tuple<Tensors...>& a, const std::tuple<Tensors...>& b) {
  return same_bits(std::get<0>(a), std::get<0>(b)) && same_bits(std::get<1>(a), std::get<1>(b));
}

// An op in every order of threads and blocks, of which the result must not depend.
template <auto op>
struct InAllOrders;
template <class Result, class... Arguments, Result (*op)(Arguments...)>
struct InAllOrders<op> {
  static Result once(Order in, Arguments... arguments) {
    order = in;
    guards = 0, unchecked = false, error.clear();
    Result result = op(arguments...);
    TORCH_CHECK(!unchecked, "the last launch was not checked");
    return result;
  }
  static Result call(Arguments... arguments) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    Result result = once(kForward, arguments...);
    for (int in = kReverse; in < orders; in++)
      TORCH_CHECK(same_bits(result, once(Order(in), arguments...)), "the result depends on the order of threads");
    return result;
  }
};

}  // namespace emulated

#define __syncthreads() emulated::syncthreads(__LINE__)
#define __shfl_down_sync(mask, value, by) \
  emulated::shuffle(mask, value, emulated::lane() + (by) < 32 ? emulated::lane() + (by) : emulated::lane())
#define __shfl_xor_sync(mask, value, by) emulated::shuffle(mask, value, emulated::lane() ^ (by))
#define C10_CUDA_KERNEL_LAUNCH_CHECK() (emulated::unchecked = false)

enum { cudaDevAttrComputeCapabilityMajor };
inline int cudaDeviceGetAttribute(int* value, int, int) { return *value = 8, 0; }
#define C10_CUDA_CHECK(call) (call)

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(c10::Device) { emulated::guards++; }
  ~CUDAGuard() { emulated::guards--; }
};
inline int getCurrentCUDAStream() {
  TORCH_CHECK(emulated::guards > 0, "the stream was asked for without a device guard");
  return 0;
}
}  // namespace c10::cuda

// What a test sets and reads, by ctypes.
#define FOR_TESTS extern "C" __attribute__((used, weak, visibility("default")))
FOR_TESTS void emulated_orders(int count) { emulated::orders = count; }
FOR_TESTS void emulated_seed(unsigned seed) { emulated::random.seed(seed); }
FOR_TESTS void emulated_plant(int bug) { emulated::bug = bug; }
FOR_TESTS int64_t emulated_launches() { return emulated::launches; }
FOR_TESTS int64_t emulated_threads() { return emulated::threads; }
FOR_TESTS int64_t emulated_trips(int loop) { return emulated::trips[loop]; }
FOR_TESTS void emulated_select(int64_t count, const int64_t* blocks) {
  emulated::selected.assign(blocks, blocks + count);
}
