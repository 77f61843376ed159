#include "server/byte_budget.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace osdn {
ByteBudget::Hold::Hold(Hold&& other) noexcept
    : used_(std::move(other.used_)), bytes_(std::exchange(other.bytes_, 0)) {}

ByteBudget::Hold& ByteBudget::Hold::operator=(Hold&& other) noexcept {
  // What it held goes with `other`.
  std::swap(used_, other.used_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ByteBudget::Hold::~Hold() {
  if (used_ != nullptr) used_->fetch_sub(bytes_, std::memory_order_relaxed);
}

absl::StatusOr<ByteBudget::Hold> ByteBudget::Take(int64_t bytes) {
  Hold hold;
  if (absl::Status s = Add(bytes, &hold); !s.ok()) return s;
  return hold;
}

absl::Status ByteBudget::Add(int64_t bytes, Hold* hold) {
  if (bytes > max_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what_, ": ", bytes, " bytes, at most ", max_bytes_,
                     " may be held together; the server's option ", option_, " is too small"));
  }
  int64_t used = used_->load(std::memory_order_relaxed);
  do {
    if (bytes > max_bytes_ - used) {
      return WithRetryDelay(
          absl::ResourceExhaustedError(absl::StrCat(
              what_, ": ", used, " bytes are held and this call needs ", bytes, " more, at most ",
              max_bytes_, " may be (the server's option ", option_, "); try again later")),
          kRetryDelay);
    }
  } while (!used_->compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  hold->used_ = used_;
  hold->bytes_ += bytes;
  return absl::OkStatus();
}

}  // namespace osdn
