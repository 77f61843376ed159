// A bound on memory that calls hold, as a number that they take from.
#ifndef OSDN_SERVER_BYTE_BUDGET_H_
#define OSDN_SERVER_BYTE_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace osdn {

// Thread-safe; never waits.
class ByteBudget {
 public:
  // Bytes taken, given back with it. May outlive the budget: what it belongs to may be a request
  // whose end somebody else decides.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold();

   private:
    friend class ByteBudget;
    std::shared_ptr<std::atomic<int64_t>> used_;
    int64_t bytes_ = 0;
  };

  // `what` the bytes are and the `option` that bounds them, for messages.
  ByteBudget(int64_t max_bytes, absl::string_view what, absl::string_view option)
      : max_bytes_(max_bytes), what_(what), option_(option) {}

  ByteBudget(const ByteBudget&) = delete;
  ByteBudget& operator=(const ByteBudget&) = delete;

  // RESOURCE_EXHAUSTED naming limit and option, with RetryInfo where waiting helps.
  absl::StatusOr<Hold> Take(int64_t bytes);
  // `hold` has so many more, or on an error as many as before.
  absl::Status Add(int64_t bytes, Hold* hold);

  int64_t used() const { return used_->load(std::memory_order_relaxed); }
  int64_t max_bytes() const { return max_bytes_; }

 private:
  const int64_t max_bytes_;
  const std::string what_;
  const std::string option_;
  const std::shared_ptr<std::atomic<int64_t>> used_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace osdn

#endif  // OSDN_SERVER_BYTE_BUDGET_H_
