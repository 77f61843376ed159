#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace osdn::tools {

Progress::Progress(std::string label, int64_t total)
    : Progress(std::move(label), total, stderr, ::isatty(STDERR_FILENO) == 1) {}

Progress::Progress(std::string label, int64_t total, std::FILE* out, bool terminal)
    : label_(std::move(label)), total_(total), out_(out), terminal_(terminal) {}

Progress::~Progress() {
  if (drawn_) std::fputc('\n', out_);
}

void Progress::Update(int64_t done, std::string_view what) {
  const double share = total_ <= 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total_);
  const int percent = static_cast<int>(100 * std::clamp(share, 0.0, 1.0));
  if (!terminal_) {
    constexpr int kQuarter = 25;
    if (percent / kQuarter <= last_percent_ / kQuarter) return;
    last_percent_ = percent;
    std::fprintf(out_, "%s: %d%%\n", label_.c_str(), percent);
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (now < next_draw_ && percent < 100) return;
  next_draw_ = now + std::chrono::milliseconds(100);
  DrawBar(percent, done, what);
}

std::string Progress::RateText(int64_t done, int64_t total, double seconds) {
  if (seconds < 1 || done <= 0) return "";
  const double rate = static_cast<double>(done) / seconds;
  const auto left = static_cast<int64_t>(std::llround(static_cast<double>(total - done) / rate));
  constexpr int64_t kMinute = 60;
  constexpr int64_t kHour = 60 * kMinute;
  const std::string time =
      left >= kHour
          ? absl::StrFormat("%d:%02d:%02d", left / kHour, left % kHour / kMinute, left % kMinute)
          : absl::StrFormat("%d:%02d", left / kMinute, left % kMinute);
  constexpr double kMega = 1e6;
  constexpr double kKilo = 1e3;
  if (rate >= kMega) return absl::StrFormat("%.0fM/s, %s left", rate / kMega, time);
  if (rate >= kKilo) return absl::StrFormat("%.0fk/s, %s left", rate / kKilo, time);
  return absl::StrFormat("%.0f/s, %s left", rate, time);
}

void Progress::DrawBar(int percent, int64_t done, std::string_view what) {
  constexpr int kWidth = 30;
  constexpr int kNameWidth = 34;
  const int filled = percent * kWidth / 100;
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kWidth - filled), '-');
  const std::string_view tail =
      what.size() > kNameWidth ? what.substr(what.size() - kNameWidth) : what;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  constexpr int kRateWidth = 20;
  std::fprintf(out_, "\r%s [%s] %3d%% %-*.*s %-*s", label_.c_str(), bar.c_str(), percent,
               kNameWidth, static_cast<int>(tail.size()), tail.data(), kRateWidth,
               RateText(done, total_, seconds).c_str());
  std::fflush(out_);
  drawn_ = true;
}

}  // namespace osdn::tools
