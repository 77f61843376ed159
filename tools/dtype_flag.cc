#include "tools/dtype_flag.h"

#include <CLI/CLI.hpp>

#include "engine/model_config.h"

namespace osdn::tools {

CLI::Option* AddDTypeFlag(CLI::App* command, std::optional<kernels::DType>* dtype,
                          const std::string& help) {
  return command
      ->add_option_function<std::string>(
          "--dtype", [dtype](const std::string& name) { *dtype = ParseDType(name); }, help)
      ->check(CLI::IsMember({"f32", "bf16", "int8", "int4"}));
}

}  // namespace osdn::tools
