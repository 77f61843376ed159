#!/usr/bin/env bash
# What `tests/device.sh pack` does: builds the cuda preset's programs and collects in build/device all
# that a GPU machine with nothing but CUDA, Python and PyTorch needs to run
# tests/device.sh: stripped programs, libosdn_cuda.so, the libraries they want (all but the C and C++
# runtimes, the driver and cuBLAS), these scripts, model configs, and fla's wheels.
# Usage: tests/device.sh pack [--no-build] [--wheels DIR] [--into DIR] [--jobs N]
#   --no-build     collect what build/cuda/bin has
#   --wheels DIR   wheels of flash-linear-attention and what it needs (default: .whl, if it is there)
#   --into DIR     instead of build/device
#   --jobs N       of ninja (default: a core each)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

build=${OSDN_BUILD_DIR:-build/cuda}
target=build/device
wheels=.whl
jobs=$(nproc)
build_first=true
while [[ $# -gt 0 ]]; do
  case $1 in
    --no-build) build_first=false ;;
    --wheels | --into | --jobs)
      [[ $# -ge 2 ]] || { echo "pack: $1 needs a value" >&2; exit 2; }
      case $1 in
        --wheels) wheels=$2 ;;
        --into) target=$2 ;;
        --jobs) jobs=$2 ;;
      esac
      shift
      ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;;
    *) echo "pack: unknown argument '$1'" >&2; exit 2 ;;
  esac
  shift
done

programs=(osdn-tools cuda_mixer_bench backend_ops_test batch_invariance_test golden_mixer_test
  layers_test mixer_forms_test engine_model_test engine_state_test integration_engine_test
  integration_invariance_test)
module=libosdn_cuda.so

if $build_first; then
  [[ -f $build/build.ninja ]] || cmake --preset cuda
  wanted=()
  known=$(ninja -C "$build" -t targets all | sed -n 's/^\([^/:]*\): phony$/\1/p')
  for name in osdn_cuda "${programs[@]}"; do
    if grep -qx -- "$name" <<<"$known"; then
      wanted+=("$name")
    else
      echo "pack: this build has no target $name; going on without" >&2
    fi
  done
  ninja -C "$build" -k 0 -j "$jobs" "${wanted[@]}" || echo "pack: not all of it built" >&2
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage"/{bin,lib,tests/device,wheels}
for file in "$module" "${programs[@]}"; do
  if [[ -f $build/bin/$file ]]; then
    cp "$build/bin/$file" "$stage/bin/"
    strip --strip-unneeded "$stage/bin/$file"
  else
    echo "pack: no $build/bin/$file; going on without" >&2
  fi
done
[[ -f $stage/bin/osdn-tools ]] || { echo "pack: osdn-tools is needed" >&2; exit 1; }

# Any machine of this kind has these or newer ones; cuBLAS is found where the toolkit or PyTorch is.
left_out='/(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|cuda|cublas|cublasLt))\.so'
for file in "$stage"/bin/*; do
  ldd "$file" | awk '$2 == "=>" && $3 ~ /^\// {print $3}'
done | sort -u | grep -Ev "$left_out" | while read -r library; do
  cp -L "$library" "$stage/lib/"
done

cp tests/device.sh "$stage/tests/"
cp tests/device/*.py "$stage/tests/device/"
if compgen -G "$wheels/*.whl" >/dev/null; then
  cp "$wheels"/*.whl "$stage/wheels/"
else
  echo "pack: no wheels in $wheels; going on without the comparison with fla" >&2
fi
git rev-parse HEAD >"$stage/commit" 2>/dev/null || true

mkdir -p "$target"
# The libraries seldom change, and packing them well takes half a minute.
sum=$(cat "$stage"/lib/* | cksum)
if [[ ! -f $target/libraries.tar.xz || $(cat "$target/libraries.sum" 2>/dev/null) != "$sum" ]]; then
  XZ_OPT=${XZ_OPT:--4} tar --create --xz --file "$target/libraries.tar.xz" --owner=0 --group=0 -C "$stage" lib
  echo "$sum" >"$target/libraries.sum"
fi
XZ_OPT=${XZ_OPT:--1} tar --create --xz --file "$target/programs.tar.xz" --exclude=./lib --owner=0 --group=0 -C "$stage" .
cp tests/device/unpack.sh "$target/device.sh"
du -sh "$stage"/* | sed "s|$stage/||"
echo "$target: $(du -sh "$target" | cut -f1), $(find "$stage/bin" -type f | wc -l) programs"
