#!/usr/bin/env bash
# Installs what the tests need, builds, runs every check and test, and ends with the summaries.
# Everything runs even after a failure; the exit status is 0 only if all of it passed.
# Usage: tests/run.sh [--preset cpu|cuda|asan|tsan] [--fast] [--containers]
#   --preset P    CMake preset (default: cuda where nvcc and kernels/cuda are, else cpu)
#   --fast        without clang-tidy and without tests marked slow
#   --containers  also build and run the container image (tests/containers.sh; minutes)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

preset=cpu
if [[ -f kernels/cuda/CMakeLists.txt ]] && PATH="$PATH:/usr/local/cuda/bin" command -v nvcc >/dev/null; then
  preset=cuda
fi
fast=false
containers=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --preset)
      [[ $# -ge 2 ]] || { echo "run.sh: --preset needs a value" >&2; exit 2; }
      preset=$2
      shift 2
      ;;
    --fast) fast=true; shift ;;
    --containers) containers=true; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    *) echo "run.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done

build_dir=build/$preset
log_dir=$build_dir/test-logs
venv=build/venv
jobs=$(nproc)
results=()

# step NAME COMMAND...: runs it, keeps its output in the log folder too, and notes how it ended.
step() {
  local name=$1 status started=$SECONDS
  shift
  printf '\n==> %s\n' "$name"
  "$@" 2>&1 | tee "$log_dir/${name// /-}.log"
  status=${PIPESTATUS[0]}
  results+=("$([[ $status -eq 0 ]] && echo PASS || echo FAIL)|$name|$((SECONDS - started)) s")
  return "$status"
}

install_packages() {
  local groups=(build test)
  $containers && groups+=(containers)
  deploy/install-deps.sh "${groups[@]}"
}

build() {
  local options=(-DOSDN_BUILD_TESTS=ON)
  # For Hopper alone: half the time of the preset, which builds for sm_80 too.
  [[ $preset == cuda ]] && options+=(-DCMAKE_CUDA_ARCHITECTURES=90a)
  cmake --preset "$preset" "${options[@]}" && cmake --build "$build_dir" --parallel "$jobs"
}

make_venv() {
  local stamp=$venv/.requirements
  if ! cmp --silent tests/requirements.txt "$stamp"; then
    /usr/bin/python3 -m venv --clear --system-site-packages "$venv" &&
      "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/requirements.txt &&
      cp tests/requirements.txt "$stamp"
  fi
}

run_ctest() {
  ctest --test-dir "$build_dir" --output-on-failure --parallel "$jobs" --no-tests=error
}

run_pytest() {  # run_pytest FOLDER
  local options=()
  $fast && options+=(-m "not slow")
  OSDN_BUILD_DIR=$PWD/$build_dir "$venv/bin/python" -m pytest "${options[@]}" "$1"
}

print_summary() {
  local failed=0 row log status name seconds
  printf '\n==> Summary (preset %s)\n' "$preset"
  [[ -f $log_dir/ctest.log ]] && sed -n '/% tests passed/,$p' "$log_dir/ctest.log"
  for log in "$log_dir"/pytest-*.log; do
    [[ -f $log ]] && printf '\n%s\n' "$(basename "$log" .log)" &&
      sed -n -e '/^=* short test summary/,/^=.* in .*s/p' -e '/^=.* in [0-9.]*s/p' "$log" | uniq | tail -n 40
  done
  echo
  for row in "${results[@]}"; do
    [[ $row == PASS* ]] || failed=1
    IFS='|' read -r status name seconds <<<"$row"
    printf '%-5s %-20s %s\n' "$status" "$name" "$seconds"
  done
  return $failed
}

rm -rf "$log_dir"
mkdir -p "$log_dir"
step packages install_packages || { print_summary; exit 1; }
step lint tests/lint.sh
if step build build; then
  step ctest run_ctest
  if step "python environment" make_venv; then
    step "pytest e2e" run_pytest tests/e2e
    # Once is enough: the reference model does not depend on how the C++ was built. A run of its own,
    # because its package osdn and the generated osdn.v1 do not fit into one process.
    [[ $preset == *san ]] || step "pytest reference" run_pytest tools/python/tests
  fi
  $fast || step clang-tidy tests/clang_tidy.sh "$build_dir"
  $containers && step containers tests/containers.sh
fi
print_summary
