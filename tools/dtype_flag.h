// --dtype of the commands that write models.
#ifndef OSDN_TOOLS_DTYPE_FLAG_H_
#define OSDN_TOOLS_DTYPE_FLAG_H_

#include <optional>
#include <string>

#include "kernels/include/tensor.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace osdn::tools {

// Adds --dtype f32|bf16|int8|int4. `*dtype` stays as it is when the flag is not given and must
// outlive the parse.
CLI::Option* AddDTypeFlag(CLI::App* command, std::optional<kernels::DType>* dtype,
                          const std::string& help);

}  // namespace osdn::tools

#endif  // OSDN_TOOLS_DTYPE_FLAG_H_
