# What of the CUDA backend is plain C++: plans, step layouts, graph keys. Tested where there is no
# CUDA at all.
osdn_add_library(osdn_cuda_host
  SOURCES
    cuda/batch_plan.cc
    cuda/batch_plan.h
    cuda/graph_cache.h
    cuda/step_layout.cc
    cuda/step_layout.h
  DEPS absl::span)

# Runs the mixer's kernel source on the host, for tests (primitives.cuh).
osdn_add_library(osdn_cuda_emulation
  SOURCES cuda/emulation/emulator.cc cuda/emulation/emulator.h
  DEPS osdn_cuda_host)
