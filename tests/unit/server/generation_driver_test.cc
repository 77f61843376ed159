#include "server/generation_driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace osdn {
namespace {

constexpr absl::Duration kTooLong = absl::Seconds(60);

TokenDelta Delta(int32_t id) { return {{id}, std::to_string(id) + " "}; }

GenerationFinished Finished(FinishReason reason = FinishReason::kLength) {
  GenerationFinished finished;
  finished.reason = reason;
  return finished;
}

// Keeps what it gets, and checks that events come one at a time and none after the last.
class RecordingSink final : public GenerationSink {
 public:
  // With `pause`, every delta waits for Resume.
  explicit RecordingSink(bool pause = false) : pause_(pause) {}

  bool OnEvent(GenerationEvent event) override {
    EXPECT_FALSE(busy_.exchange(true)) << "two events at once";
    EXPECT_FALSE(finished_.HasBeenNotified()) << "an event after the last";
    if (auto* end = std::get_if<GenerationFinished>(&event)) {
      reason_ = end->reason;
      finished_.Notify();
      return true;  // nothing of this object may be touched any more
    }
    const bool pause = pause_;  // once the event is counted, the test may go on and end
    {
      absl::MutexLock lock(&mutex_);
      for (int32_t id : std::get<TokenDelta>(event).token_ids) ids_.push_back(id);
      ++events_;
    }
    if (pause) return false;  // stays busy until Release
    busy_ = false;
    return true;
  }

  void Release(GenerationDriver* driver) {
    busy_ = false;
    driver->Resume();
  }

  void WaitForEvents(int count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return events_ >= count; };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kTooLong));
  }
  bool WaitForEnd() { return finished_.WaitForNotificationWithTimeout(kTooLong); }
  std::vector<int32_t> ids() {
    absl::MutexLock lock(&mutex_);
    return ids_;
  }
  FinishReason reason() const { return reason_; }

 private:
  const bool pause_;
  std::atomic<bool> busy_{false};
  absl::Mutex mutex_;
  std::vector<int32_t> ids_ ABSL_GUARDED_BY(mutex_);
  int events_ ABSL_GUARDED_BY(mutex_) = 0;
  FinishReason reason_ = FinishReason::kError;
  absl::Notification finished_;
};

std::vector<int32_t> Iota(int count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TEST(GenerationDriverTest, PassesOnEverythingInOrder) {
  Executor executor(1);
  RecordingSink sink;
  auto driver = std::make_shared<GenerationDriver>(&sink, &executor);
  auto stream = std::make_shared<TokenStream>(4, [] {});
  stream->Push(Delta(0));  // waits already
  driver->Start(stream);
  for (int32_t i = 1; i < 500; ++i) stream->Push(Delta(i));
  stream->Push(Finished());
  ASSERT_TRUE(sink.WaitForEnd());
  EXPECT_EQ(sink.ids(), Iota(500));
  EXPECT_EQ(sink.reason(), FinishReason::kLength);
}

TEST(GenerationDriverTest, DoesNotReadAheadOfABusySink) {
  Executor executor(1);
  RecordingSink sink(/*pause=*/true);
  auto driver = std::make_shared<GenerationDriver>(&sink, &executor);
  auto stream = std::make_shared<TokenStream>(2, [] {});
  driver->Start(stream);
  stream->Push(Delta(0));
  sink.WaitForEvents(1);
  stream->Push(Delta(1));
  stream->Push(Delta(2));
  EXPECT_TRUE(stream->full()) << "the producer must notice that nobody reads";
  EXPECT_EQ(sink.ids(), Iota(1));

  sink.Release(driver.get());
  sink.WaitForEvents(2);
  EXPECT_FALSE(stream->full());
  stream->Push(Finished());
  sink.Release(driver.get());
  sink.WaitForEvents(3);
  sink.Release(driver.get());
  ASSERT_TRUE(sink.WaitForEnd());
  EXPECT_EQ(sink.ids(), Iota(3));
}

TEST(GenerationDriverTest, CancelReachesTheStream) {
  Executor executor(1);
  RecordingSink sink;
  auto driver = std::make_shared<GenerationDriver>(&sink, &executor);
  auto stream = std::make_shared<TokenStream>(4, [] {});
  driver->Start(stream);
  EXPECT_FALSE(stream->cancelled());
  driver->Cancel();
  EXPECT_TRUE(stream->cancelled());
  EXPECT_TRUE(driver->cancelled());
  stream->Push(Finished(FinishReason::kCancelled));
  ASSERT_TRUE(sink.WaitForEnd());
  EXPECT_EQ(sink.reason(), FinishReason::kCancelled);
}

TEST(GenerationDriverTest, CancelBeforeStartIsNotLost) {
  Executor executor(1);
  RecordingSink sink;
  auto driver = std::make_shared<GenerationDriver>(&sink, &executor);
  driver->Cancel();
  auto stream = std::make_shared<TokenStream>(4, [] {});
  driver->Start(stream);
  EXPECT_TRUE(stream->cancelled());
  stream->Push(Finished(FinishReason::kCancelled));
  ASSERT_TRUE(sink.WaitForEnd());
}

// A sink like a call's reactor: deletes itself and lets go of the driver when the end comes,
// answers some events at once and others from another thread.
class SelfDeletingSink final : public GenerationSink {
 public:
  SelfDeletingSink(Executor* writers, Executor* grpc, std::atomic<int>* alive, uint64_t seed)
      : grpc_(grpc), alive_(alive), random_(seed) {
    ++*alive_;
    driver_ = std::make_shared<GenerationDriver>(this, writers);
  }
  ~SelfDeletingSink() { --*alive_; }

  std::shared_ptr<GenerationDriver> driver() const { return driver_; }

  bool OnEvent(GenerationEvent event) override {
    if (std::holds_alternative<GenerationFinished>(event)) {
      grpc_->Post([this] { delete this; });  // OnDone
      return true;
    }
    if (random_() % 2 == 0) return true;
    grpc_->Post([driver = driver_.get()] { driver->Resume(); });  // OnWriteDone
    return false;
  }

 private:
  Executor* const grpc_;
  std::atomic<int>* const alive_;
  std::mt19937_64 random_;
  std::shared_ptr<GenerationDriver> driver_;
};

// Producers, cancels and ends race; run under TSan and ASan this is the test of all lifetimes.
TEST(GenerationDriverTest, SurvivesRacesBetweenEventsCancelAndEnd) {
  constexpr int kCalls = 400;
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::atomic<int> alive{0};
  {
    Executor writers(2);
    Executor grpc(2);
    std::mt19937_64 random(seed);
    for (int call = 0; call < kCalls; ++call) {
      auto stream = std::make_shared<TokenStream>(3, [] {});
      auto* sink = new SelfDeletingSink(&writers, &grpc, &alive, random());
      const std::shared_ptr<GenerationDriver> driver = sink->driver();
      const int tokens = static_cast<int>(random() % 8);
      std::thread producer([stream, tokens] {
        for (int32_t i = 0; i < tokens && !stream->cancelled(); ++i) stream->Push(Delta(i));
        stream->Push(
            Finished(stream->cancelled() ? FinishReason::kCancelled : FinishReason::kLength));
      });
      if (random() % 2 == 0) driver->Cancel();
      driver->Start(stream);
      if (random() % 2 == 0) driver->Cancel();
      producer.join();
    }
    // The driver's executors run what is left when they go, writers first.
    while (alive.load() != 0) std::this_thread::yield();
  }
  EXPECT_EQ(alive.load(), 0);
}

}  // namespace
}  // namespace osdn
