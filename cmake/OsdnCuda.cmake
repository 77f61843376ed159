# Decides whether the CUDA backend module (kernels/cuda, libosdn_cuda.so) is built: OSDN_WITH_CUDA.
#   OFF   never
#   AUTO  where nvcc is found and this source tree has kernels/cuda
#   ON    always; says what is missing otherwise
set(OSDN_WITH_CUDA OFF)
if(NOT OSDN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "OSDN_CUDA is '${OSDN_CUDA}'; it takes AUTO, ON or OFF")
endif()

if(NOT OSDN_CUDA STREQUAL "OFF")
  find_program(OSDN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
               PATH_SUFFIXES bin)
  set(osdn_cuda_obstacle "")
  if(NOT OSDN_NVCC)
    string(CONCAT osdn_cuda_obstacle
      "nvcc was not found: install the CUDA toolkit (13.0 is what is tested) and put nvcc on PATH, "
      "or set CUDA_HOME, or configure with -DOSDN_CUDA=OFF")
  elseif(NOT EXISTS "${PROJECT_SOURCE_DIR}/kernels/cuda/CMakeLists.txt")
    string(CONCAT osdn_cuda_obstacle
      "this source tree has no kernels/cuda: configure with -DOSDN_CUDA=OFF or AUTO")
  endif()

  if(NOT osdn_cuda_obstacle)
    set(OSDN_WITH_CUDA ON)
    set(CMAKE_CUDA_COMPILER "${OSDN_NVCC}" CACHE FILEPATH "nvcc")
    set(CMAKE_CUDA_ARCHITECTURES "80;90a" CACHE STRING "GPU architectures to build for")
    if(OSDN_CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER "${OSDN_CCACHE}")
    endif()
    enable_language(CUDA)
    # CUDA sources take CMAKE_CXX_STANDARD, and CMake 3.25 has to be told how nvcc is asked for it.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  elseif(OSDN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "OSDN_CUDA=ON, but ${osdn_cuda_obstacle}")
  endif()
endif()
message(STATUS "CUDA backend: ${OSDN_WITH_CUDA} (OSDN_CUDA=${OSDN_CUDA})")
