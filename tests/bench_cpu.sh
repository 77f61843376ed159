#!/usr/bin/env bash
# Repeats the CPU measurements of docs/benchmarks.md: makes random-weight models of a reference size in a
# temporary directory, measures every bar beside this machine's ceilings, prints one table.
# Usage: tests/bench_cpu.sh [CONFIG]     CONFIG: models/configs/osdn-340m.yaml unless given
# Environment: OSDN_BUILD_DIR (build/cpu), OSDN_BENCH_REPEAT (3), OSDN_BENCH_THREADS (0: one a core).
# About 3 minutes and 2 GB of disk for 340M on 2 cores; nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."
config=$(realpath "${1:-models/configs/osdn-340m.yaml}")
tools=${OSDN_BUILD_DIR:-build/cpu}/bin/osdn-tools
repeat=${OSDN_BENCH_REPEAT:-3}
threads=${OSDN_BENCH_THREADS:-0}
if [[ ! -x $tools ]]; then
  echo "$tools is not built: cmake --preset cpu && cmake --build build/cpu --target osdn-tools" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() {  # quietly NAME COMMAND...: its messages are shown only when it fails
  local log=$work/$1.log
  shift
  "$@" 2>"$log" || { cat "$log" >&2; exit 1; }
}
synth() { quietly synth "$tools" synth --config "$config" "$@" >/dev/null; }
bench() {  # bench NAME OPTIONS...: one run, its JSON kept
  local name=$1
  shift
  echo "measuring $name" >&2
  quietly "$name" "$tools" bench --json --backend cpu --threads "$threads" --repeat "$repeat" "$@" \
    >"$work/$name.json"
}

echo "making models" >&2
for dtype in bf16 int8 int4; do synth --dtype "$dtype" "$work/$dtype"; done
synth --dtype bf16 --delta-net "$work/delta-net"

bench bf16 --model "$work/bf16" --batch 1,4,16 --position 1000,1000000 --prompt 512,2048
bench int8 --model "$work/int8" --against "$work/bf16" --batch 1,16 --position 1000 --prompt 2048 --no-engine
bench int4 --model "$work/int4" --against "$work/bf16" --batch 1,16 --position 1000 --prompt 2048 --no-engine
bench osdn-against-delta-net --model "$work/bf16" --against "$work/delta-net" \
  --batch 1,16 --position 1000 --prompt 2048 --no-engine
python3 tests/bench_table.py "$work"/{bf16,int8,int4,osdn-against-delta-net}.json
