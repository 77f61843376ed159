#!/usr/bin/env bash
# Checks and times the CUDA backend on a GPU machine, in one run of under 9 minutes.
#
#   tests/device.sh pack [--no-build] [--wheels DIR]     here, without a GPU: builds, and collects into
#       build/device what such a machine lacks (programs, their libraries, these scripts, fla's wheels)
#   bash build/device/device.sh [SECTION...]             there, from the root of a checkout
#   tests/device.sh [SECTION...]                         where build/cuda was built in place
#
# Sections, in this order: machine correct bench fla sanitize; `all` (the default) is all of them.
#   machine   device, driver, and whether osdn-tools runs (part of every run)
#   correct   op tests against float64, the mixer's kernels, the engine's tests, parity with the cpu
#             backend on logits and greedy tokens, position 1,000,000
#   bench     ceilings, the mixer, decode and prefill of 340M and 1.3B models of random weights
#   fla       flash-linear-attention on the same shapes
#   sanitize  compute-sanitizer's memcheck and racecheck over a small set
# A failure does not stop what follows; the exit status tells. One table comes last; results.json and
# device.log go to $OUT (build/device-results unless set).
# Environment: OSDN_DEVICE_SECONDS (530) bounds the run, OSDN_DEVICE_WORK (a temporary folder) keeps
# models between runs, OSDN_BUILD_DIR (build/cuda) has the programs where they were built in place,
# OSDN_DEVICE_BACKEND (cuda) is the backend under test: cpu tries this script without a GPU.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

sections=()
while [[ $# -gt 0 ]]; do
  case $1 in
    pack)
      shift
      exec "$here/device/pack.sh" "$@"
      ;;
    machine | correct | sanitize | bench | fla) sections+=("$1") ;;
    all) sections+=(machine correct bench fla sanitize) ;;
    -h | --help) usage; exit ;;
    *) echo "device.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
  shift
done
[[ ${#sections[@]} -gt 0 ]] || sections=(machine correct bench fla sanitize)

wants() { [[ " ${sections[*]} " == *" $1 "* ]]; }

# --- Where things are -----------------------------------------------------------------------------
repository=${OSDN_REPOSITORY:-$(cd "$here/.." && pwd)}
if [[ -d $here/../bin ]]; then # unpacked from a pack
  bin=$(cd "$here/../bin" && pwd)
  libraries=$(cd "$here/../lib" && pwd)
  wheels=$here/../wheels
else
  bin=${OSDN_BUILD_DIR:-$repository/build/cuda}/bin
  libraries=
  wheels=$repository/.whl
fi
if [[ ! -x $bin/osdn-tools ]]; then
  echo "device.sh: no osdn-tools in $bin: build it, or see --help for pack" >&2
  exit 2
fi
out=${OUT:-$repository/build/device-results}
mkdir -p "$out"
if [[ -n ${OSDN_DEVICE_WORK:-} ]]; then
  work=$OSDN_DEVICE_WORK
  mkdir -p "$work"
else
  work=$(mktemp -d)
  made_work=$work
fi
finish() {
  local job
  for job in $(jobs -p); do
    [[ $job == "$tee" ]] || kill "$job" 2>/dev/null
  done
  [[ -z ${made_work:-} ]] || rm -rf "$made_work"
  exec >&- 2>&- # so that tee ends, with all of the log written
  wait "$tee"
}
trap finish EXIT
parts=$work/results # a JSON file a step that has figures
rm -rf "$parts"
mkdir -p "$parts"
exec > >(tee "$out/device.log") 2>&1
tee=$!

# cuBLASLt is half a gigabyte, so it is the machine's own: the toolkit's, or the one PyTorch brings.
find_cublas() {
  local folder
  ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13' && return
  for folder in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
    $(python3 -c 'import importlib.util as i
spec = i.find_spec("nvidia")
print(*[f"{p}/{d}/lib" for p in (spec.submodule_search_locations if spec else []) for d in ("cu13", "cublas")])' 2>/dev/null); do
    [[ -e $folder/libcublasLt.so.13 ]] && echo "$folder" && return
  done
  echo "device.sh: no libcublasLt.so.13 on this machine" >&2
}
libraries=$libraries:$(find_cublas)
native() { env LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"; }

# Python's own libraries and the pack's do not mix, so its children get the pack's by way of this.
tools=$work/osdn-tools
cat >"$tools" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "$bin/osdn-tools" "\$@"
WRAPPER
chmod +x "$tools"
export OSDN_TEST_DATA_DIR=$repository/tests/data
export backend=${OSDN_DEVICE_BACKEND:-cuda}
export OSDN_TEST_BACKENDS=$backend GTEST_BRIEF=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# --- Steps ----------------------------------------------------------------------------------------
readonly limit=${OSDN_DEVICE_SECONDS:-530}
steps=$work/steps.tsv
: >"$steps"

# step NAME SECONDS COMMAND...: runs it within its limit and the run's, and notes how it ended. Of a
# long output the log shows both ends.
step() {
  local name=$1 seconds=$2 left status started=$SECONDS log=$work/step.log
  shift 2
  left=$((limit - SECONDS))
  printf '\n==> %s\n' "$name"
  if [[ $left -lt 5 ]]; then
    printf '%s\t%s\t%s\n' "$name" "no time left" 0 >>"$steps"
    return 1
  fi
  [[ $seconds -lt $left ]] || seconds=$left
  timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1
  status=$?
  if [[ $(wc -l <"$log") -gt 160 ]]; then
    head -n 60 "$log"
    echo "[...]"
    tail -n 100 "$log"
  else
    cat "$log"
  fi
  case $status in
    0) status=PASS ;;
    124 | 137) status="stopped after $seconds s" ;;
    *) status="FAIL ($status)" ;;
  esac
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - started)) >>"$steps"
  echo "-- $name: $status, $((SECONDS - started)) s"
  [[ $status == PASS ]]
}

note() { # note NAME STATUS: of a step that cannot run
  echo "-- $1: $2"
  printf '%s\t%s\t0\n' "$1" "$2" >>"$steps"
}

# test_step NAME SECONDS PROGRAM OPTIONS...: a program of the build, if it was built.
test_step() {
  local name=$1 seconds=$2 program=$3
  shift 3
  if [[ ! -x $bin/$program ]]; then
    note "$name" "missing: $program"
    return
  fi
  step "$name" "$seconds" env LD_LIBRARY_PATH="$libraries" "$bin/$program" "$@"
}

describe_machine() {
  if [[ $backend == cuda ]]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,pcie.link.gen.current \
      --format=csv || return
  fi
  nvcc --version 2>/dev/null | grep release
  python3 --version
  echo "$(nproc) cores, $(uname -r), libraries: $libraries"
  native "$bin/osdn-tools" --version && native "$bin/osdn-tools" inspect "$repository/models/osdn-mini"
}

synth() { # synth CONFIG OPTIONS...: a model of random weights under its name, once
  local name=$1
  shift
  [[ -f $work/$name/model.yaml ]] && return
  native "$bin/osdn-tools" synth --config "$repository/models/configs/$name.yaml" --dtype bf16 "$@" \
    --overwrite "$work/$name"
}

bench() { # bench NAME MODEL OPTIONS...: osdn-tools bench, its JSON kept
  local name=$1 model=$2
  shift 2
  native "$bin/osdn-tools" bench --model "$model" --backend "$backend" --json "$@" >"$parts/$name.json" ||
    { rm -f "$parts/$name.json"; return 1; }
  python3 "$here/device/report.py" bench "$parts/$name.json"
}
export -f synth bench native
export bin libraries repository work parts here

# --- Sections -------------------------------------------------------------------------------------
prewarm= # process id while it runs, "finished" after
start_prewarm() { # Triton compiles on the CPU while our own checks run
  install_fla || return
  PYTHONPATH=$site timeout 240 python3 "$here/device/fla_bench.py" --prewarm --deadline 230 \
    >"$work/prewarm.log" 2>&1 &
  prewarm=$!
}
finish_prewarm() { # nothing else may run beside what is timed
  [[ -n $prewarm && $prewarm != finished ]] || return
  echo "waiting for Triton"
  wait "$prewarm" || cat "$work/prewarm.log"
  prewarm=finished
}

site=$work/site
install_fla() {
  compgen -G "$wheels/*.whl" >/dev/null || return 1
  [[ -d $site ]] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --root-user-action=ignore --target "$site" "$wheels"/*.whl
}

# The cpu backend reads the million tokens while the checks before run.
start_far() {
  rm -f "$work/far.status"
  (
    timeout 220 python3 "$here/device/parity.py" --far --tools "$tools" --repository "$repository" \
      --backend "$backend" --work "$work/far" --json "$parts/far.json" >"$work/far.log" 2>&1
    echo $? >"$work/far.status"
  ) &
}
finish_far() {
  while [[ ! -f $work/far.status ]]; do sleep 0.5; done
  cat "$work/far.log"
  return "$(<"$work/far.status")"
}
export -f finish_far

correct() {
  start_far
  test_step "mixer kernels" 60 cuda_mixer_bench check "$parts/mixer_check.json"
  test_step "op tests" 90 backend_ops_test
  test_step "golden mixer" 30 golden_mixer_test --gtest_filter='*GoldenBackendTest*'
  test_step "batch invariance" 60 batch_invariance_test
  test_step "blocks" 60 layers_test
  test_step "mixer forms" 60 mixer_forms_test --gtest_filter="*$backend*"
  test_step "engine: model" 60 engine_model_test --gtest_filter="*$backend*"
  test_step "engine: state" 60 engine_state_test --gtest_filter="*$backend*"
  test_step "engine: requests" 60 integration_engine_test --gtest_filter="*$backend*"
  test_step "engine: invariance" 60 integration_invariance_test
  step "parity with cpu" 170 python3 "$here/device/parity.py" --tools "$tools" \
    --repository "$repository" --backend "$backend" --work "$work/parity" --json "$parts/parity.json"
  step "tokens at position 1,000,000" 120 bash -c finish_far
  step "speed at position 1,000,000" 60 bash -c 'bench mini_position "$repository/models/osdn-mini" \
    --batch 1,4 --position 1000,1000000 --no-prefill --repeat 3 --seconds 0.2'
}

sanitizer() { # sanitizer NAME TOOL SECONDS PROGRAM OPTIONS...
  local name=$1 tool=$2 seconds=$3 program=$4
  shift 4
  [[ -x $bin/$program ]] || { note "$name" "missing: $program"; return; }
  step "$name" "$seconds" env LD_LIBRARY_PATH="$libraries" compute-sanitizer --tool "$tool" \
    --error-exitcode 9 --print-limit 5 "$bin/$program" "$@"
}

sanitize() {
  local path=$PATH small
  PATH=$PATH:/usr/local/cuda/bin
  if ! command -v compute-sanitizer >/dev/null; then
    note sanitizer "missing: compute-sanitizer"
    return
  fi
  small='*RmsNorm*:*OutputNorm*:*SwiGlu*:*ShortConv*:*QkPrepare*:*Gates*:*EmbedIsExact*:*GatherRows*'
  sanitizer "memcheck: mixer" memcheck 45 cuda_mixer_bench check
  sanitizer "racecheck: mixer" racecheck 45 cuda_mixer_bench check
  sanitizer "memcheck: ops" memcheck 30 backend_ops_test --gtest_filter="$small:*LinearBf16*"
  sanitizer "racecheck: ops" racecheck 30 backend_ops_test --gtest_filter="$small"
  sanitizer "memcheck: engine" memcheck 40 osdn-tools generate --model "$repository/models/osdn-mini" \
    --backend "$backend" --prompt "Once upon a time" --temperature 0 --max-tokens 8
  PATH=$path
}

models_bench() {
  local size=$1
  step "make $size" 60 bash -c "synth osdn-$size"
  step "bench $size" 100 bash -c "bench bench_$size '$work/osdn-$size' --batch 1,8,64,256 \
    --position 1000,1000000 --prompt 8192,131072 --prefill-step 8192 --repeat 3 --seconds 0.25"
}

run_bench() {
  step ceilings 40 python3 "$here/device/ceilings.py" --json "$parts/ceilings.json"
  test_step "mixer bench" 60 cuda_mixer_bench time "$parts/mixer.json"
  models_bench 340m
  models_bench 1.3b
}

run_fla() {
  if ! install_fla; then
    note fla "skipped: no wheels"
    return
  fi
  finish_prewarm
  if [[ -z $prewarm ]]; then
    step "fla: compile" 150 env PYTHONPATH="$site" python3 "$here/device/fla_bench.py" --prewarm \
      --deadline 140
  fi
  local left=$((limit - SECONDS - 15))
  ! wants sanitize || left=$((left - 60))
  [[ $left -lt 150 ]] || left=150
  step "fla" $((left + 10)) env PYTHONPATH="$site" python3 "$here/device/fla_bench.py" \
    --json "$parts/fla.json" --deadline $((left > 0 ? left : 1))
}

echo "sections: ${sections[*]}; at most $limit s"
step machine 30 bash -c "$(declare -f describe_machine); describe_machine"
if wants fla && wants correct; then start_prewarm; fi
wants correct && correct
wants bench && finish_prewarm
wants bench && run_bench
wants fla && run_fla
wants sanitize && sanitize
python3 "$here/device/report.py" table --parts "$parts" --steps "$steps" --json "$out/results.json"
