#!/usr/bin/env bash
# Builds deploy/Dockerfile and runs the image, on a machine without a container engine: a minimal Debian
# made by debootstrap stands in for debian:bookworm-slim, buildah (chroot isolation, vfs storage) for docker.
# The container shares this host's network, and no cgroup limits are tested.
# Needs root and deploy/install-deps.sh containers. Usage: tests/containers.sh [--keep]
#   --keep  leave images and base in build/containers for the next run
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/containers
mirror=${OSDN_DEBIAN_MIRROR:-http://deb.debian.org/debian}
image=localhost/osdn-server
base=localhost/debian:bookworm-slim
keep=false
[[ ${1:-} == --keep ]] && keep=true

die() {
  echo "containers: $*" >&2
  exit 1
}
say() { printf '\n==> %s\n' "$*"; }

[[ $EUID -eq 0 ]] || die "needs root (debootstrap and chroot)"
mkdir -p "$work"
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
b() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }

containers=()
server_pid=
port=50951

# Signals the server in the container, not the buildah around it.
signal_server() {
  local pid
  for pid in $(pgrep -x osdn-server); do
    # Other servers of this machine are left alone.
    if grep -q "127.0.0.1:$port" "/proc/$pid/cmdline"; then kill "-$1" "$pid"; fi
  done
}

cleanup() {
  [[ -z $server_pid ]] || signal_server KILL
  for container in "${containers[@]}"; do
    b rm "$container" >/dev/null 2>&1 || true
  done
  $keep || rm -rf "$work"
}
trap cleanup EXIT

make_base() {
  b inspect --type image "$base" >/dev/null 2>&1 && return
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/rootfs" "$mirror" \
    >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
  # What this host trusts the base trusts too: behind a proxy that opens TLS, pip needs it.
  if compgen -G "/usr/local/share/ca-certificates/*.crt" >/dev/null; then
    cp /usr/local/share/ca-certificates/*.crt "$work/rootfs/usr/local/share/ca-certificates/"
    chroot "$work/rootfs" update-ca-certificates >/dev/null 2>&1
  fi
  local container
  container=$(b from scratch)
  containers+=("$container")
  b copy --quiet "$container" "$work/rootfs" / >/dev/null
  b commit --quiet "$container" "$base" >/dev/null
  rm -rf "$work/rootfs"
}

# A command in a fresh container of the image, as its user.
in_image() {
  local container
  container=$(b from --pull-never "$image")
  containers+=("$container")
  b run --network host "$container" -- "$@"
}

config() { b inspect --type image --format "$1" "$image"; }

say "Base image"
make_base
say "Build"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
b bud --network host --pull-never --format docker --build-arg BASE="$base" \
  --build-arg REVISION="$revision" -f deploy/Dockerfile -t "$image" .

say "What is in it"
[[ $(config '{{.Docker.Config.User}}') == 10001:10001 ]] || die "the image does not run as user 10001"
[[ $(config '{{.Docker.Config.Healthcheck.Test}}') == *"osdn-tools health"* ]] || die "no health check"
[[ $(config '{{index .Docker.Config.Labels "org.opencontainers.image.revision"}}') == "$revision" ]] ||
  die "no revision label"
[[ $(in_image id -un) == osdn ]] || die "not running as osdn"
in_image sh -c '! command -v g++ && ! command -v cc && ! command -v cmake' >/dev/null ||
  die "a compiler is in the image"
missing=$(in_image sh -c 'ldd /usr/local/bin/osdn-server /usr/local/bin/osdn-tools | grep "not found" || true')
[[ -z $missing ]] || die "libraries are missing: $missing"

say "Serve and ask"
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
http_port=8080
while (exec 3<>"/dev/tcp/127.0.0.1/$http_port") 2>/dev/null; do http_port=$((http_port + 1)); done
# The image's own entry point and command, with another address: the network is the host's.
read -ra command <<<"$(config '{{range .Docker.Config.Entrypoint}}{{.}} {{end}}{{range .Docker.Config.Cmd}}{{.}} {{end}}')"
command=("${command[@]/0.0.0.0:50051/127.0.0.1:$port}" --drain-propagation 0s)
command=("${command[@]/0.0.0.0:8080/127.0.0.1:$http_port}")
server=$(b from --pull-never "$image")
containers+=("$server")
b run --network host "$server" -- "${command[@]}" >"$work/server.log" 2>&1 &
server_pid=$!
for _ in {1..300}; do
  in_server=$(b run --network host "$server" -- osdn-tools health --address "127.0.0.1:$port" 2>&1) && break
  kill -0 "$server_pid" 2>/dev/null || { cat "$work/server.log" >&2; die "the server ended"; }
  sleep 0.2
done
[[ $in_server == SERVING ]] || { cat "$work/server.log" >&2; die "not healthy: $in_server"; }
answer=$(b run --network host "$server" -- osdn-tools generate --address "127.0.0.1:$port" \
  --prompt "Once upon a time" --temperature 0 --max-tokens 40)
printf '%s\n' "$answer"
[[ ${#answer} -gt 40 ]] || die "the completion is too short"

say "HTTP"
for path in health metrics; do
  exec 3<>"/dev/tcp/127.0.0.1/$http_port" || die "nothing listens on port $http_port"
  printf 'GET /%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$path" >&3
  page=$(cat <&3)
  exec 3>&-
  [[ $page == "HTTP/1.1 200"* ]] || die "/$path: ${page%%$'\r'*}"
done
[[ $page == *osdn_build_info* ]] || die "no metrics on /metrics"

say "SIGTERM ends it with 0"
signal_server TERM
status=0
wait "$server_pid" || status=$?
server_pid=
[[ $status -eq 0 ]] || { cat "$work/server.log" >&2; die "exit status $status"; }
b images "$image"
echo "containers: all checks passed"
