#ifndef OSDN_SERVER_VERSION_H_
#define OSDN_SERVER_VERSION_H_

#include "absl/strings/string_view.h"

namespace osdn {

// The project's version, e.g. "0.1.0".
absl::string_view Version();

}  // namespace osdn

#endif  // OSDN_SERVER_VERSION_H_
