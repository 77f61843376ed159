# osdn_add_library(name SOURCES a.cc b.h ... [DEPS targets...] [PRIVATE_DEPS targets...])
function(osdn_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE osdn_compile_options ${ARG_PRIVATE_DEPS})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
endfunction()

# osdn_add_executable(name SOURCES ... [DEPS ...])
function(osdn_add_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE osdn_compile_options ${ARG_DEPS})
endfunction()

# osdn_add_test(name SOURCES ... [DEPS ...] [LABELS unit|integration] [TIMEOUT seconds])
# Test data is found through OSDN_TEST_DATA_DIR, never through the working directory.
function(osdn_add_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  osdn_add_executable(${name} SOURCES ${ARG_SOURCES} DEPS ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    OSDN_TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/data"
    OSDN_MODELS_DIR="${PROJECT_SOURCE_DIR}/models")
  # What is tested is optimised; the tests themselves need not be.
  target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()

# osdn_add_benchmark(name SOURCES ... [DEPS ...])
function(osdn_add_benchmark name)
  if(OSDN_BUILD_BENCHMARKS)
    osdn_add_executable(${name} ${ARGN})
    target_link_libraries(${name} PRIVATE benchmark::benchmark)
  endif()
endfunction()
