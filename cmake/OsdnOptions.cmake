# Build options, compiler settings shared by every target, and sanitizers.
option(OSDN_BUILD_TESTS "Build unit and integration tests" ON)
option(OSDN_BUILD_BENCHMARKS "Build the Google Benchmark programs" ON)
option(OSDN_GRPC "Build the server and the tools' commands that talk to one; OFF needs no gRPC" ON)
option(OSDN_WERROR "Treat warnings as errors" ON)
set(OSDN_CUDA AUTO CACHE STRING "Build the CUDA backend module: AUTO (where nvcc is), ON or OFF")
set_property(CACHE OSDN_CUDA PROPERTY STRINGS AUTO ON OFF)
set(OSDN_SANITIZE "" CACHE STRING "Sanitizers for all targets, e.g. address,undefined or thread")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

find_program(OSDN_CCACHE ccache)
if(OSDN_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${OSDN_CCACHE}")
endif()

# Every first-party target links this.
add_library(osdn_compile_options INTERFACE)
target_include_directories(osdn_compile_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(osdn_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual>)
if(OSDN_WERROR)
  target_compile_options(osdn_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

if(OSDN_SANITIZE)
  # What a sanitizer finds ends the program, so that a test fails.
  add_compile_options(-fsanitize=${OSDN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${OSDN_SANITIZE})
endif()
