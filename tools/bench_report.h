// What `osdn-tools bench` prints.
#ifndef OSDN_TOOLS_BENCH_REPORT_H_
#define OSDN_TOOLS_BENCH_REPORT_H_

#include <string>

#include "tools/bench.h"

namespace osdn::tools {

std::string BenchToText(const BenchResult& result);
// One JSON object. Fields that need a ceiling are null where none was measured.
std::string BenchToJson(const BenchResult& result);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_BENCH_REPORT_H_
