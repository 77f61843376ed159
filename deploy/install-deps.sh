#!/usr/bin/env bash
# Installs the Debian 12 packages that osdn-server needs. Runs apt-get only for what is missing.
# Usage: deploy/install-deps.sh [--print] [build] [runtime] [test] [containers]     (default: build)
#   build       compiler, CMake and the libraries that are linked
#   runtime     only the shared libraries that the built programs load (all that the container image adds)
#   test        what tests/run.sh adds: Redis, Prometheus, GoogleTest, Google Benchmark, Python, PyTorch for CPUs, linters
#   containers  buildah and debootstrap, for tests/containers.sh
#   --print     list the packages of these groups and install nothing
set -euo pipefail

build_packages=(
  ca-certificates ccache cmake g++ make ninja-build pkg-config
  python3 python3-pip  # cmake/fetch_sdist.sh fetches SentencePiece's source package with pip
  libabsl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc grpc-proto
  libssl-dev libyaml-cpp-dev nlohmann-json3-dev libcpp-httplib-dev prometheus-cpp-dev libhiredis-dev libcli11-dev libspdlog-dev libfmt-dev libedit-dev
  libdnnl-dev ocl-icd-opencl-dev  # oneDNN's CMake configuration asks for OpenCL's headers
  libhwy-dev librandom123-dev libminizip-dev zlib1g-dev libre2-dev
)
runtime_packages=(
  ca-certificates libabsl20220623 libgrpc++1.51 libprotobuf32 libssl3 libyaml-cpp0.7
  libspdlog1.10 libfmt9 libprometheus-cpp-core1.0 libhiredis0.14 libcpp-httplib0.11 libedit2 libdnnl2 libhwy1 libgomp1
  libminizip1 zlib1g libre2-9
)
test_packages=(
  git openssl redis-server prometheus clang-format clang-tidy shellcheck libgtest-dev libgmock-dev libbenchmark-dev
  python3-venv python3-torch python3-numpy libopenblas0-pthread
  chromium  # the chat page is tested in a real browser
)
container_packages=(buildah debootstrap)

die() {
  echo "install-deps: $*" >&2
  exit 1
}

check_debian() {
  local id='' version=''
  if [[ -r /etc/os-release ]]; then
    id=$(. /etc/os-release && echo "${ID:-}")
    version=$(. /etc/os-release && echo "${VERSION_ID:-}")
  fi
  [[ $id == debian && $version == 12 ]] ||
    die "these package names are Debian 12's, this is ${id:-an unknown system} ${version:-}." \
        "Install the like of them yourself (deploy/install-deps.sh --print), or build the container" \
        "image of deploy/Dockerfile."
}

# Names of the packages among the arguments that are not installed.
missing_of() {
  local installed
  installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    sed -n 's/^installed //p' || true)
  comm -23 <(printf '%s\n' "$@" | sort -u) <(sort -u <<<"$installed")
}

# apt-get as root; waits for another apt that holds the lock.
apt_get() {
  local sudo=()
  if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || die "not root and no sudo; run as root: apt-get $*"
    sudo=(sudo)
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@"
}

main() {
  local print=false packages=()
  [[ ${1:-} == --print ]] && { print=true; shift; }
  for group in "${@:-build}"; do
    case $group in
      build) packages+=("${build_packages[@]}") ;;
      runtime) packages+=("${runtime_packages[@]}") ;;
      test) packages+=("${test_packages[@]}") ;;
      containers) packages+=("${container_packages[@]}") ;;
      *) die "unknown group '$group'; there are build, runtime, test and containers" ;;
    esac
  done
  if $print; then
    printf '%s\n' "${packages[@]}" | sort -u
    return
  fi
  check_debian
  local missing
  mapfile -t missing < <(missing_of "${packages[@]}")
  if [[ ${#missing[@]} -eq 0 ]]; then
    return
  fi
  echo "install-deps: installing ${missing[*]}"
  apt_get update || die "apt-get update failed: check /etc/apt and the network"
  apt_get install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
    die "apt-get could not install: ${missing[*]}"
}

main "$@"
