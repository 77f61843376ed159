// The flags that choose a backend, the same for every command that runs a model.
#ifndef OSDN_TOOLS_BACKEND_FLAGS_H_
#define OSDN_TOOLS_BACKEND_FLAGS_H_

#include <string>

#include "kernels/backend.h"

namespace CLI {
class App;
}  // namespace CLI

namespace osdn::tools {

// `options` must outlive the parse.
void AddBackendFlags(CLI::App* command, kernels::BackendOptions* options);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_BACKEND_FLAGS_H_
