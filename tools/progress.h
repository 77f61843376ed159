// How far a long piece of work is, on standard error: a bar on a terminal, plain lines elsewhere.
#ifndef OSDN_TOOLS_PROGRESS_H_
#define OSDN_TOOLS_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace osdn::tools {

// One thread. `total` is in units of work (bytes, tokens); 0 counts as done.
class Progress {
 public:
  Progress(std::string label, int64_t total);
  // For tests: any stream, and whether it is a terminal.
  Progress(std::string label, int64_t total, std::FILE* out, bool terminal);
  // Leaves the cursor on a fresh line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // "41M/s, 2:05 left": units of work a second so far, and the time at that rate. Empty in the
  // first second, when it would be a guess.
  static std::string RateText(int64_t done, int64_t total, double seconds);

  // `done` so far; `what` is being worked on. Cheap to call often: draws at most ten times a second
  // on a terminal and a line for each quarter of the work elsewhere.
  void Update(int64_t done, std::string_view what);

 private:
  void DrawBar(int percent, int64_t done, std::string_view what);

  const std::string label_;
  const int64_t total_;
  std::FILE* const out_;
  const bool terminal_;
  int last_percent_ = 0;  // of the last line
  bool drawn_ = false;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point next_draw_{};
};

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_PROGRESS_H_
