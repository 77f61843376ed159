#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

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
  DrawBar(percent, what);
}

void Progress::DrawBar(int percent, std::string_view what) {
  constexpr int kWidth = 30;
  constexpr int kNameWidth = 34;
  const int filled = percent * kWidth / 100;
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kWidth - filled), '-');
  const std::string_view tail =
      what.size() > kNameWidth ? what.substr(what.size() - kNameWidth) : what;
  std::fprintf(out_, "\r%s [%s] %3d%% %-*.*s", label_.c_str(), bar.c_str(), percent, kNameWidth,
               static_cast<int>(tail.size()), tail.data());
  std::fflush(out_);
  drawn_ = true;
}

}  // namespace osdn::tools
