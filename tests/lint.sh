#!/usr/bin/env bash
# Checks that need no build: formatting, shell scripts, test registration, size of files.
# Usage: tests/lint.sh          exits 1 if anything is amiss, after showing all of it
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=0

# Tracked files and new ones that git does not ignore, of these patterns.
sources() { git ls-files --cached --others --exclude-standard --deduplicate -- "$@"; }

report() {  # report TITLE TEXT: a finding, if TEXT is not empty
  if [[ -n $2 ]]; then
    printf '%s\n%s\n' "$1" "$2"
    failed=1
  fi
}

check_format() {
  local file
  sources '*.cc' '*.h' '*.cu' '*.cuh' | while read -r file; do
    [[ -f $file ]] && ! clang-format --dry-run -Werror "$file" >/dev/null 2>&1 && echo "  $file"
  done
}

# Every *_test.cc must be named by the CMakeLists.txt of its folder.
unregistered_tests() {
  local file
  sources '*_test.cc' | while read -r file; do
    [[ -f $file ]] && ! grep -qw "$(basename "$file" .cc)" "$(dirname "$file")/CMakeLists.txt" &&
      echo "  $file"
  done
}

long_files() {
  local file
  sources '*.cc' '*.h' '*.cu' '*.cuh' '*.py' '*.proto' '*.cmake' '*.sh' | while read -r file; do
    [[ -f $file && $(wc -l <"$file") -gt 600 ]] && echo "  $file"
  done
}

# Lower layers must not include upper ones: server > engine > kernels.
upward_includes() {
  grep -nE '#include "(engine|server|tools)/' -r kernels --include='*.cc' --include='*.h' --include='*.cu'
  grep -nE '#include "(server|tools)/' -r engine --include='*.cc' --include='*.h'
  grep -nE '#include "tools/' -r server --include='*.cc' --include='*.h'
}

report "Not formatted (clang-format -i FILE):" "$(check_format)"
report "Registered by no CMakeLists.txt of their folder:" "$(unregistered_tests)"
report "Longer than 600 lines:" "$(long_files)"
report "Includes that go upwards:" "$(upward_includes)"
report "shellcheck:" "$(sources '*.sh' .ci/run | xargs -r shellcheck --severity=warning 2>&1)"
[[ $failed -eq 0 ]] && echo "lint: nothing found"
exit $failed
