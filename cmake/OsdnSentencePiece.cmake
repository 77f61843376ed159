# SentencePiece, inference only, as target osdn_sentencepiece.
#
# Debian's binary exports a bundled protobuf that collides with libprotobuf, so the library is built here
# from the source package of PyPI against the system's protobuf. Its small absl look-alike stays inside:
# it lives in namespace absl while Abseil's symbols live in absl::lts_*, and the public header we hand out
# names std::string_view instead, so it may be included beside Abseil's headers.
set(OSDN_SENTENCEPIECE_VERSION 0.2.1)
set(OSDN_SENTENCEPIECE_SHA256 8138cec27c2f2282f4a34d9a016e3374cd40e5c6e9cb335063db66a0a3b71fad)

if(DEFINED ENV{XDG_CACHE_HOME})
  set(osdn_cache_default "$ENV{XDG_CACHE_HOME}/osdn")
elseif(DEFINED ENV{HOME})
  set(osdn_cache_default "$ENV{HOME}/.cache/osdn")
else()
  set(osdn_cache_default "${CMAKE_BINARY_DIR}/_deps")
endif()
set(OSDN_DOWNLOAD_CACHE "${osdn_cache_default}" CACHE PATH
    "Where fetched source packages are kept, for all build trees")

# Unpacks the pinned source package once a build tree; sets osdn_sentencepiece_root.
function(osdn_unpack_sentencepiece)
  set(name "sentencepiece-${OSDN_SENTENCEPIECE_VERSION}")
  set(root "${CMAKE_BINARY_DIR}/_deps/${name}")
  set(stamp "${root}/.unpacked-${OSDN_SENTENCEPIECE_SHA256}")
  if(NOT EXISTS "${stamp}")
    execute_process(
      COMMAND "${PROJECT_SOURCE_DIR}/cmake/fetch_sdist.sh" sentencepiece
              ${OSDN_SENTENCEPIECE_VERSION} ${OSDN_SENTENCEPIECE_SHA256} "${OSDN_DOWNLOAD_CACHE}"
      RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "SentencePiece ${OSDN_SENTENCEPIECE_VERSION} could not be fetched (above)")
    endif()
    file(REMOVE_RECURSE "${root}")
    file(ARCHIVE_EXTRACT INPUT "${OSDN_DOWNLOAD_CACHE}/${name}.tar.gz"
         DESTINATION "${CMAKE_BINARY_DIR}/_deps")
    file(TOUCH "${stamp}")
  endif()
  set(osdn_sentencepiece_root "${root}/sentencepiece" PARENT_SCOPE)
endfunction()

# Writes the public header without its `namespace absl { using std::string_view; }`.
function(osdn_write_sentencepiece_header source destination)
  file(READ "${source}" text)
  string(REPLACE "namespace absl {\nusing std::string_view;\n}  // namespace absl\n" "" patched
         "${text}")
  if(patched STREQUAL text)
    message(FATAL_ERROR "${source}: no absl::string_view alias to remove; review this version")
  endif()
  string(REPLACE "absl::string_view" "std::string_view" patched "${patched}")
  file(CONFIGURE OUTPUT "${destination}" CONTENT "${patched}" @ONLY)
endfunction()

osdn_unpack_sentencepiece()
set(osdn_sentencepiece_build "${CMAKE_BINARY_DIR}/_deps/sentencepiece-build")
osdn_write_sentencepiece_header("${osdn_sentencepiece_root}/src/sentencepiece_processor.h"
                                "${osdn_sentencepiece_build}/include/sentencepiece_processor.h")
file(CONFIGURE OUTPUT "${osdn_sentencepiece_build}/private/config.h"
     CONTENT "#define VERSION \"${OSDN_SENTENCEPIECE_VERSION}\"
#define PACKAGE \"sentencepiece\"
#define PACKAGE_STRING \"sentencepiece\"
#define INSTALL_DATADIR \"\"
")

set(osdn_sentencepiece_sources bpe_model char_model error filesystem model_factory model_interface
    normalizer sentencepiece_processor unigram_model util word_model)
list(TRANSFORM osdn_sentencepiece_sources PREPEND "${osdn_sentencepiece_root}/src/")
list(TRANSFORM osdn_sentencepiece_sources APPEND ".cc")

set(osdn_sentencepiece_generated)
foreach(proto sentencepiece sentencepiece_model)
  set(generated "${osdn_sentencepiece_build}/private/${proto}.pb.cc"
                "${osdn_sentencepiece_build}/private/${proto}.pb.h")
  add_custom_command(
    OUTPUT ${generated}
    COMMAND protobuf::protoc "--proto_path=${osdn_sentencepiece_root}/src"
            "--cpp_out=${osdn_sentencepiece_build}/private" ${proto}.proto
    DEPENDS "${osdn_sentencepiece_root}/src/${proto}.proto" VERBATIM)
  list(APPEND osdn_sentencepiece_generated ${generated})
endforeach()

add_library(osdn_sentencepiece STATIC EXCLUDE_FROM_ALL
  ${osdn_sentencepiece_sources} ${osdn_sentencepiece_generated}
  "${osdn_sentencepiece_root}/third_party/absl/flags/flag.cc")
target_include_directories(osdn_sentencepiece SYSTEM INTERFACE
  "${osdn_sentencepiece_build}/include")
target_include_directories(osdn_sentencepiece PRIVATE
  "${osdn_sentencepiece_build}/private" "${osdn_sentencepiece_root}/src"
  "${osdn_sentencepiece_root}" "${osdn_sentencepiece_root}/third_party/absl")
target_compile_definitions(osdn_sentencepiece PRIVATE _USE_EXTERNAL_PROTOBUF HAVE_PTHREAD=1)
# Its warnings are not ours to mend; its error texts shall not name the build folder.
target_compile_options(osdn_sentencepiece PRIVATE
  -w "-fmacro-prefix-map=${osdn_sentencepiece_root}/=")
# Hidden: what it defines cannot meet a symbol of a shared library, FLAGS_help of absl for one.
set_target_properties(osdn_sentencepiece PROPERTIES
  CXX_STANDARD 17 CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
# The full library, never protobuf-lite: both in one process register the same symbols twice.
target_link_libraries(osdn_sentencepiece PUBLIC protobuf::libprotobuf Threads::Threads)
