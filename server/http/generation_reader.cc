#include "server/http/generation_reader.h"

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace osdn {

struct GenerationReader::Shared {
  absl::Mutex mutex;
  std::deque<Item> frames ABSL_GUARDED_BY(mutex);  // at most one a generation
  std::vector<bool> ended ABSL_GUARDED_BY(mutex);
  size_t running ABSL_GUARDED_BY(mutex) = 0;
  absl::Status failure ABSL_GUARDED_BY(mutex);

  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return !frames.empty() || running == 0 || !failure.ok();
  }
  bool AllEnded() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return running == 0; }
};

class GenerationReader::Call final : public GenerationCall {
 public:
  Call(const Generation& generation, const CallEnvironment& environment, size_t index,
       std::shared_ptr<Shared> shared)
      : GenerationCall(generation.kind, environment, generation.request),
        index_(index),
        shared_(std::move(shared)) {
    Begin();
  }

  using GenerationCall::driver;

 private:
  bool OnDelta(const TokenDelta& delta) override {
    Item item{index_, {}};
    SetFrame(delta, &item.frame);
    return Give(std::move(item), false);
  }
  bool OnProgress(const PrefillProgress& progress) override {
    Item item{index_, {}};
    SetFrame(progress, &item.frame);
    return Give(std::move(item), false);
  }
  bool OnChoice(const GenerationFinished& finished, StateAccess::Left left) override {
    Item item{index_, {}};
    SetFrame(finished, std::move(left), &item.frame);
    ToldStates();
    return Give(std::move(item), finished.last);
  }
  void Fail(const absl::Status& status) override {
    // A copy: with the lock released this object may be gone.
    const std::shared_ptr<Shared> shared = shared_;
    absl::MutexLock lock(&shared->mutex);
    if (shared->failure.ok()) shared->failure = status;
    End(shared.get());
  }

  bool Give(Item item, bool last) {
    const std::shared_ptr<Shared> shared = shared_;
    absl::MutexLock lock(&shared->mutex);
    shared->frames.push_back(std::move(item));
    if (last) End(shared.get());
    return false;
  }
  void End(Shared* shared) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared->mutex) {
    shared->ended[index_] = true;
    --shared->running;
  }

  const size_t index_;
  const std::shared_ptr<Shared> shared_;
};

GenerationReader::GenerationReader(const CallEnvironment& environment,
                                   const std::vector<Generation>& generations)
    : shared_(std::make_shared<Shared>()) {
  {
    absl::MutexLock lock(&shared_->mutex);
    shared_->running = generations.size();
    shared_->ended.resize(generations.size());
  }
  for (size_t i = 0; i < generations.size(); ++i) {
    calls_.push_back(std::make_unique<Call>(generations[i], environment, i, shared_));
  }
}

GenerationReader::~GenerationReader() {
  Cancel();
  while (true) {
    Release();
    absl::MutexLock lock(&shared_->mutex);
    const auto more = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mutex) {
      return !shared_->frames.empty() || shared_->AllEnded();
    };
    shared_->mutex.Await(absl::Condition(&more));
    if (shared_->AllEnded()) return;
    taken_ = shared_->frames.front().generation;
    shared_->frames.pop_front();
  }
}

void GenerationReader::Release() {
  if (!taken_.has_value()) return;
  const size_t index = *std::exchange(taken_, std::nullopt);
  {
    absl::MutexLock lock(&shared_->mutex);
    if (shared_->ended[index]) return;
  }
  calls_[index]->driver().Resume();
}

absl::StatusOr<std::optional<GenerationReader::Item>> GenerationReader::Next() {
  Release();
  absl::MutexLock lock(&shared_->mutex);
  shared_->mutex.Await(absl::Condition(shared_.get(), &Shared::Ready));
  if (!shared_->failure.ok()) return shared_->failure;
  if (shared_->frames.empty()) return std::optional<Item>();
  std::optional<Item> item = std::move(shared_->frames.front());
  shared_->frames.pop_front();
  taken_ = item->generation;
  return item;
}

void GenerationReader::Cancel() {
  for (const std::unique_ptr<Call>& call : calls_) call->driver().Cancel();
}

}  // namespace osdn
