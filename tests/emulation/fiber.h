// Stacks between which a thread of the CPU changes, and what the sanitizers are told of it. For cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateBenignRaceSized(const char*, int, const volatile void*, size_t, const char*);
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#define NOT_OF_THE_KERNEL __attribute__((no_sanitize_thread))
#else
#define NOT_OF_THE_KERNEL
#endif

namespace emulated {

#if defined(__SANITIZE_THREAD__)
constexpr size_t kStack = 16 << 10;  // each is a new one, of which every byte is forgotten
#else
constexpr size_t kStack = 64 << 10;
#endif

// While one is alive, ThreadSanitizer takes no notice of what its fiber does, the standard library included: what the
// emulator keeps of its threads is no memory of a kernel. Memory that is allocated then was never read or written.
struct Unseen {
#if defined(__SANITIZE_THREAD__)
  Unseen() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Unseen() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Unseen() {}
#endif
};

// Where a fiber, or what called it, was left.
#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;

  // Stores what the ABI wants kept on the stack of one, and takes it from the stack of the other.
  __attribute__((naked, noinline)) static void jump(Context& /*from*/, Context& /*to*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
        "movq %rsp, (%rdi); movq (%rsi), %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  NOT_OF_THE_KERNEL void begin(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t(63));
    *--top = nullptr;  // where `entry` would return to
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    stack_pointer = top;
  }
};
#else
struct Context {
  ucontext_t state;

  static void jump(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
  void begin(char* stack, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack, state.uc_stack.ss_size = kStack, state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
};
#endif

}  // namespace emulated
