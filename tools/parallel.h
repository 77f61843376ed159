// Plain data parallelism for the tools' own loops (the backends have theirs).
#ifndef OSDN_TOOLS_PARALLEL_H_
#define OSDN_TOOLS_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace osdn::tools {

// Calls task(begin, end) on consecutive, about equal shares of [0, count), from as many threads as
// the process may run on; shares have `min_share` items at least, so that small work stays on the
// caller. Returns when all are done. `task` must not care how the range is cut.
void ParallelShares(int64_t count, int64_t min_share,
                    const std::function<void(int64_t begin, int64_t end)>& task);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_PARALLEL_H_
