# XGrammar's C++ core (constrained decoding) as target osdn_xgrammar, from the source package of PyPI;
# its Python side, CUDA kernels and test libraries are left out. Only engine/constraint.cc includes it.
#
# It reports through hooks of ours (engine/xgrammar_hooks.h): warnings are kept instead of printed, and
# checkpoints put into its loops let a compilation end at its deadline.
set(OSDN_XGRAMMAR_VERSION 0.1.27)
set(OSDN_XGRAMMAR_SHA256 40af7bb2891f1633ec7f660723c74a92a963307d283aca9e3b4e53a0feaf1d46)

# Replaces the one occurrence of `before` in `file`.
function(osdn_patch file before after)
  file(READ "${file}" text)
  string(REPLACE "${before}" "${after}" patched "${text}")
  if(patched STREQUAL text)
    message(FATAL_ERROR "${file}: nothing to patch; review this version")
  endif()
  file(WRITE "${file}" "${patched}")
endfunction()

function(osdn_patch_xgrammar root)
  set(check "osdn_xgrammar_checkpoint();")
  foreach(file cpp/grammar_compiler.cc cpp/grammar_builder.h cpp/fsm.cc)
    file(READ "${root}/${file}" text)
    file(WRITE "${root}/${file}" "void osdn_xgrammar_checkpoint();\n${text}")
  endforeach()
  set(line "auto add_adaptive_token_mask = [&](const ParserState& state, bool is_root_rule) {")
  osdn_patch("${root}/cpp/grammar_compiler.cc" "${line}" "${line} ${check}")
  set(line "int32_t AddGrammarExpr(const GrammarExpr& grammar_expr) {")
  osdn_patch("${root}/cpp/grammar_builder.h" "${line}" "${line} ${check}")
  set(line "void AddEdge(int from, int to, int16_t min, int16_t max) {")
  osdn_patch("${root}/cpp/fsm.cc" "${line}" "${line} ${check}")
  # Classes of characters beyond ASCII were cut to their last byte.
  osdn_patch("${root}/cpp/grammar_functor.cc" "    uint8_t byte_min = static_cast<uint8_t>(expr[i]);
    uint8_t byte_max = static_cast<uint8_t>(expr[i + 1]);
    result_fsm.GetFsm().AddEdge(start_state, end_state, byte_min, byte_max);"
    "    AddCharacterRange(result_fsm, start_state, end_state, osdn_packed_utf8(expr[i]),
                      osdn_packed_utf8(expr[i + 1]));")
  file(READ "${root}/cpp/grammar_functor.cc" text)
  file(WRITE "${root}/cpp/grammar_functor.cc" "#include <cstdint>
// The bytes of a character, the first one highest.
static uint32_t osdn_packed_utf8(uint32_t c) {
  if (c < 0x80) return c;
  if (c < 0x800) return (0xC0 | c >> 6) << 8 | (0x80 | (c & 63));
  if (c < 0x10000) return (0xE0 | c >> 12) << 16 | (0x80 | (c >> 6 & 63)) << 8 | (0x80 | (c & 63));
  return (0xF0 | c >> 18) << 24 | (0x80 | (c >> 12 & 63)) << 16 | (0x80 | (c >> 6 & 63)) << 8 |
         (0x80 | (c & 63));
}
${text}")
  # Strings with a length limit may not hold control characters either.
  osdn_patch("${root}/cpp/json_schema_converter.cc" [=["[^\"\\\\\\r\\n]"]=]
             [=["[^\\0-\\x1f\"\\\\\\r\\n]"]=])
endfunction()

function(osdn_unpack_xgrammar)
  set(name "xgrammar-${OSDN_XGRAMMAR_VERSION}")
  set(root "${CMAKE_BINARY_DIR}/_deps/${name}")
  file(SHA256 "${PROJECT_SOURCE_DIR}/cmake/OsdnXGrammar.cmake" recipe)
  set(stamp "${root}/.unpacked-${recipe}")
  if(NOT EXISTS "${stamp}")
    execute_process(
      COMMAND "${PROJECT_SOURCE_DIR}/cmake/fetch_sdist.sh" xgrammar ${OSDN_XGRAMMAR_VERSION}
              ${OSDN_XGRAMMAR_SHA256} "${OSDN_DOWNLOAD_CACHE}"
              "${PROJECT_SOURCE_DIR}/cmake/xgrammar-build-requirements.txt"
      RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "XGrammar ${OSDN_XGRAMMAR_VERSION} could not be fetched (above)")
    endif()
    file(REMOVE_RECURSE "${root}")
    file(ARCHIVE_EXTRACT INPUT "${OSDN_DOWNLOAD_CACHE}/${name}.tar.gz"
         DESTINATION "${CMAKE_BINARY_DIR}/_deps")
    osdn_patch_xgrammar("${root}")
    file(TOUCH "${stamp}")
  endif()
  set(osdn_xgrammar_root "${root}" PARENT_SCOPE)
endfunction()

osdn_unpack_xgrammar()
set(osdn_xgrammar_sources compiled_grammar config earley_parser fsm fsm_builder grammar
    grammar_compiler grammar_functor grammar_matcher grammar_parser grammar_printer
    json_schema_converter regex_converter structural_tag testing tokenizer_info
    support/logging support/recursion_guard)
list(TRANSFORM osdn_xgrammar_sources PREPEND "${osdn_xgrammar_root}/cpp/")
list(TRANSFORM osdn_xgrammar_sources APPEND ".cc")

add_library(osdn_xgrammar STATIC EXCLUDE_FROM_ALL
  ${osdn_xgrammar_sources} "${PROJECT_SOURCE_DIR}/engine/xgrammar_hooks.cc")
target_include_directories(osdn_xgrammar SYSTEM PUBLIC
  "${osdn_xgrammar_root}/include" "${osdn_xgrammar_root}/3rdparty/dlpack/include")
target_include_directories(osdn_xgrammar PRIVATE
  "${osdn_xgrammar_root}/3rdparty/picojson" "${PROJECT_SOURCE_DIR}")
target_compile_definitions(osdn_xgrammar PRIVATE
  XGRAMMAR_LOG_CUSTOMIZE=1 XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
target_compile_options(osdn_xgrammar PRIVATE -w "-fmacro-prefix-map=${osdn_xgrammar_root}/=")
set_target_properties(osdn_xgrammar PROPERTIES CXX_STANDARD 17)
target_link_libraries(osdn_xgrammar PUBLIC Threads::Threads)
