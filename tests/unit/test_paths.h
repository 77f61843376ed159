// Where tests find their data.
#ifndef OSDN_TESTS_UNIT_TEST_PATHS_H_
#define OSDN_TESTS_UNIT_TEST_PATHS_H_

#include <cstdlib>
#include <string>

namespace osdn {

// tests/data of the source tree, or the folder that OSDN_TEST_DATA_DIR of the environment names:
// for programs that run on another machine than the one they were built on (tests/device.sh).
inline std::string TestDataDir() {
  const char* chosen = std::getenv("OSDN_TEST_DATA_DIR");
  return chosen != nullptr ? chosen : OSDN_TEST_DATA_DIR;
}

}  // namespace osdn

#endif  // OSDN_TESTS_UNIT_TEST_PATHS_H_
