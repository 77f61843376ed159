#include "tools/backend_flags.h"

#include <CLI/CLI.hpp>

namespace osdn::tools {

void AddBackendFlags(CLI::App* command, kernels::BackendOptions* options) {
  command->add_option("--backend", options->name, "auto, cpu, cuda or reference")
      ->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "Worker threads of the cpu backend; 0 is one a physical core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      ->add_option("--cpu-isa", options->cpu_isa,
                   "Instruction set of the cpu backend: auto, or a lower one than this CPU's best "
                   "(amx, avx512_bf16, avx512, avx2, neon, baseline)")
      ->capture_default_str();
}

}  // namespace osdn::tools
