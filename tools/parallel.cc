#include "tools/parallel.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace osdn::tools {

void ParallelShares(int64_t count, int64_t min_share,
                    const std::function<void(int64_t begin, int64_t end)>& task) {
  const auto threads = static_cast<int64_t>(std::thread::hardware_concurrency());
  const int64_t shares = std::clamp(count / std::max(min_share, int64_t{1}), int64_t{1},
                                    std::max(threads, int64_t{1}));
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < shares; ++i) {
    helpers.emplace_back(task, count * i / shares, count * (i + 1) / shares);
  }
  task(0, count / shares);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace osdn::tools
