#include "kernels/cuda/emulation/emulator.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

namespace osdn::kernels::cuda::emulation {
namespace {

constexpr size_t kStackBytes = size_t{256} * 1024;

struct AsyncCopy {
  void* shared;
  const void* global;
  bool valid;
};

enum class Waiting { kNone, kBlock, kWarp, kDone };

struct Fiber {
  ThreadView view;
  ucontext_t context = {};
  std::unique_ptr<std::byte[]> stack;
  Waiting waiting = Waiting::kNone;
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct WarpState {
  // Two turns, so that one barrier an exchange is enough.
  std::array<std::array<std::byte, kLanes * kExchangeBytes>, 2> deposits = {};
  std::array<int, kLanes> turn = {};
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<WarpState> warps;
  bool any = false;         // of SyncThreadsOr, being gathered
  bool any_result = false;  // of the last one
  ucontext_t scheduler = {};
  const std::function<void(unsigned char*)>* body = nullptr;
  unsigned char* shared = nullptr;
};

// The fiber that runs on this thread; fibers cannot take arguments through their entry point.
thread_local Block* block = nullptr;
thread_local Fiber* self = nullptr;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

void Wait(Waiting what) {
  Fiber* me = self;
  me->waiting = what;
  swapcontext(&me->context, &block->scheduler);
}

void Enter() {
  (*block->body)(block->shared);
  self->waiting = Waiting::kDone;
  swapcontext(&self->context, &block->scheduler);
}

void Complete(const std::vector<AsyncCopy>& group) {
  for (const AsyncCopy& copy : group) {
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
}

// Lets go of those whose barrier is complete; false when nobody could be.
bool Release() {
  bool released = false;
  const size_t count = block->fibers.size();
  for (size_t first = 0; first < count; first += kLanes) {
    bool all = true;
    for (size_t i = first; i < first + kLanes; ++i) {
      all = all && block->fibers[i].waiting == Waiting::kWarp;
    }
    if (!all) continue;
    released = true;
    for (size_t i = first; i < first + kLanes; ++i) block->fibers[i].waiting = Waiting::kNone;
  }
  bool all = true;
  bool any_waits = false;
  for (const Fiber& fiber : block->fibers) {
    all = all && (fiber.waiting == Waiting::kBlock);
    any_waits = any_waits || fiber.waiting == Waiting::kBlock;
  }
  if (all && any_waits) {
    released = true;
    block->any_result = block->any;
    block->any = false;
    for (Fiber& fiber : block->fibers) fiber.waiting = Waiting::kNone;
  }
  return released;
}

void RunBlock(const Launch& launch, std::array<int, 3> index,
              const std::function<void(unsigned char*)>& body, std::vector<unsigned char>* shared,
              Block* work) {
  std::memset(shared->data(), 0xFF, shared->size());
  block = work;
  block->body = &body;
  // Aligned like the device's.
  void* base = shared->data();
  size_t space = shared->size();
  block->shared = static_cast<unsigned char*>(std::align(128, launch.shared_bytes, base, space));
  for (WarpState& warp : block->warps) warp.turn = {};
  for (int t = 0; t < launch.threads; ++t) {
    Fiber& fiber = block->fibers[static_cast<size_t>(t)];
    fiber.view = {t, index};
    fiber.waiting = Waiting::kNone;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, Enter, 0);
  }
  while (true) {
    bool done = true;
    for (Fiber& fiber : block->fibers) {
      if (fiber.waiting == Waiting::kNone) {
        self = &fiber;
        swapcontext(&block->scheduler, &fiber.context);
      }
      done = done && fiber.waiting == Waiting::kDone;
    }
    if (done) break;
    if (!Release()) Fail("the threads of a block wait at barriers that do not match");
  }
  for (Fiber& fiber : block->fibers) {
    if (!fiber.open_group.empty()) Fail("an asynchronous copy was never committed");
    fiber.groups.clear();
  }
}

}  // namespace

const ThreadView& Self() { return self->view; }

void SyncThreads() { Wait(Waiting::kBlock); }

bool SyncThreadsOr(bool value) {
  block->any = block->any || value;
  Wait(Waiting::kBlock);
  return block->any_result;
}

void SyncWarp() { Wait(Waiting::kWarp); }

const std::byte* Exchange(const void* own, size_t bytes, size_t stride) {
  const auto lane = static_cast<size_t>(self->view.thread % kLanes);
  WarpState& warp = block->warps[static_cast<size_t>(self->view.thread / kLanes)];
  auto& deposit = warp.deposits[static_cast<size_t>(warp.turn[lane])];
  warp.turn[lane] ^= 1;
  std::memcpy(deposit.data() + lane * stride, own, bytes);
  Wait(Waiting::kWarp);
  return deposit.data();
}

void CopyAsync(void* shared, const void* global, bool valid) {
  self->open_group.push_back({shared, global, valid});
}

void CopyAsyncCommit() {
  self->groups.push_back(std::move(self->open_group));
  self->open_group.clear();
}

void CopyAsyncWait(int pending) {
  while (self->groups.size() > static_cast<size_t>(pending)) {
    Complete(self->groups.front());
    self->groups.pop_front();
  }
}

void Run(const Launch& launch, const std::function<void(unsigned char* shared)>& body) {
  if (launch.threads % kLanes != 0) Fail("threads a block must be whole warps");
  Block work;
  work.fibers.resize(static_cast<size_t>(launch.threads));
  for (Fiber& fiber : work.fibers) fiber.stack.reset(new std::byte[kStackBytes]);
  work.warps.resize(work.fibers.size() / kLanes);
  std::vector<unsigned char> shared(launch.shared_bytes + 256);
  for (int z = 0; z < launch.grid[2]; ++z) {
    for (int y = 0; y < launch.grid[1]; ++y) {
      for (int x = 0; x < launch.grid[0]; ++x) {
        RunBlock(launch, {x, y, z}, body, &shared, &work);
      }
    }
  }
  block = nullptr;
  self = nullptr;
}

}  // namespace osdn::kernels::cuda::emulation
