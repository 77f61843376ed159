#include "server/version.h"

namespace osdn {

absl::string_view Version() { return OSDN_VERSION; }

}  // namespace osdn
