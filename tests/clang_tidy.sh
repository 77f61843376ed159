#!/usr/bin/env bash
# Runs clang-tidy (.clang-tidy) over the sources of kernels, engine, server and tools.
# Usage: tests/clang_tidy.sh [--analyzer] BUILD_DIR [FILE...]
#   --analyzer    with clang's static analyzer too, which doubles the time
#   FILE          only these
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export EXTRA_CHECKS=
if [[ ${1-} == --analyzer ]]; then
  EXTRA_CHECKS='clang-analyzer-core.*,clang-analyzer-cplusplus.*,clang-analyzer-deadcode.*'
  shift
fi
build_dir=${1:?usage: tests/clang_tidy.sh [--analyzer] BUILD_DIR [FILE...]}
shift

# Only what this build compiles: a file without a compile command would be read with wrong options.
compiled_sources() {
  sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "$build_dir/compile_commands.json" |
    grep -E "^$PWD/(kernels|engine|server|tools)/.*\.cc$" | sort -u
}

check_file() {
  local output
  if ! output=$(clang-tidy --quiet --checks="$EXTRA_CHECKS" -p "$1" "$2" 2>/dev/null); then
    printf '%s\n' "$output"
    return 1
  fi
}
export -f check_file

if [[ $# -gt 0 ]]; then
  printf '%s\n' "$@"
else
  compiled_sources
fi | xargs -r -P "$(nproc)" -I{} bash -c 'check_file "$@"' _ "$build_dir" {} || exit 1
echo "clang-tidy: nothing found"
