#!/usr/bin/env bash
# From a bare Debian 12 machine to a streamed completion: installs packages, builds, starts osdn-server on
# the bundled model and streams one answer. The server then stays in the background; a second run
# rebuilds what changed, replaces that server and takes seconds.
# Usage: deploy/quickstart.sh [--model DIR] [--port N] [--prompt TEXT] [--once | --stop]
#   --model DIR    model directory to serve (default models/osdn-mini)
#   --port N       first port to try (default 50051); taken ports are passed over
#   --prompt TEXT  what the completion begins with
#   --once         stop the server at the end
#   --stop         only stop the server that an earlier run left behind
set -euo pipefail
cd "$(dirname "$0")/.."

build_dir=build/cpu
run_dir=build/quickstart
pid_file=$run_dir/server.pid
log_file=$run_dir/server.log
model=models/osdn-mini
port=50051
http_port=8080
prompt="Once upon a time"
once=false

say() { printf '\n==> %s\n' "$*"; }
die() {
  echo "quickstart: $*" >&2
  exit 1
}

# The pid of the server that an earlier run of this script left, if that process is still ours.
running_pid() {
  local pid
  [[ -r $pid_file ]] && read -r pid <"$pid_file" || return 1
  [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$PWD/$build_dir/bin/osdn-server"* ]] || return 1
  echo "$pid"
}

stop_server() {
  local pid
  if pid=$(running_pid); then
    kill -TERM "$pid"
    for _ in {1..400}; do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -0 "$pid" 2>/dev/null && kill -KILL "$pid"
  fi
  rm -f "$pid_file"
}

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# choose_port NAME: sets the variable to the first free port from its value on.
choose_port() {
  local -n chosen=$1
  local first=$chosen
  while port_taken "$chosen"; do
    chosen=$((chosen + 1))
    [[ $chosen -lt $((first + 100)) ]] || die "ports $first to $chosen are all taken; choose another with --port"
  done
  [[ $chosen -eq $first ]] || echo "Port $first is taken; using $chosen."
}

build() {
  local options=()
  # A tree that is configured already, by tests/run.sh for one, keeps its options.
  [[ -f $build_dir/build.ninja ]] || options=(-DOSDN_BUILD_TESTS=OFF -DOSDN_BUILD_BENCHMARKS=OFF)
  mkdir -p "$run_dir"
  cmake --preset cpu "${options[@]}" >"$run_dir/configure.log" 2>&1 ||
    { cat "$run_dir/configure.log" >&2; die "CMake failed (above)"; }
  cmake --build "$build_dir" --target osdn-server osdn-tools
}

start_server() {
  # A session of its own: closing this terminal or Ctrl-C in it does not reach the server.
  setsid "$build_dir/bin/osdn-server" --model "$model" --grpc-address "$address" \
    --http-address "127.0.0.1:$http_port" >"$log_file" 2>&1 </dev/null &
  local pid=$!
  echo "$pid" >"$pid_file"
  for _ in {1..300}; do
    if "$build_dir/bin/osdn-tools" health --address "$address" >/dev/null 2>&1; then
      disown "$pid"
      return
    fi
    kill -0 "$pid" 2>/dev/null ||
      { cat "$log_file" >&2; die "osdn-server ended before it served (its log is above)"; }
    sleep 0.1
  done
  tail -n 50 "$log_file" >&2
  die "osdn-server did not become healthy within 30 s (the end of its log is above)"
}

print_next_steps() {
  cat <<TEXT

The server runs on $address (pid $(running_pid), log $log_file). Go on with:

  Chat        $build_dir/bin/osdn-tools chat --address $address
  Chat page   http://127.0.0.1:$http_port/
  OpenAI API  http://127.0.0.1:$http_port/v1
  Generate    $build_dir/bin/osdn-tools generate --address $address --prompt "The little dog"
  Stop        deploy/quickstart.sh --stop

  Python, with nothing of ours but the .proto:
    python3 -m venv build/client && build/client/bin/pip install grpcio grpcio-tools
    build/client/bin/python -m grpc_tools.protoc -Iproto --python_out=build/client \\
        --grpc_python_out=build/client osdn/v1/inference.proto
    PYTHONPATH=build/client build/client/bin/python - <<'PY'
    import grpc
    from osdn.v1 import inference_pb2 as pb, inference_pb2_grpc as rpc
    stub = rpc.InferenceServiceStub(grpc.insecure_channel("$address"))
    request = pb.GenerateRequest(prompt=pb.Prompt(text="Once upon a time"))
    for frame in stub.GenerateStream(request):
        print(frame.delta.text, end="", flush=True)
    PY
TEXT
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --model | --port | --prompt)
      [[ $# -ge 2 ]] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --once) once=true; shift ;;
    --stop) stop_server; exit ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    *) die "unknown argument '$1'; see --help" ;;
  esac
done
[[ $port =~ ^[0-9]+$ && $port -ge 1 && $port -le 65535 ]] || die "--port $port is not a port"
[[ -f $model/model.yaml ]] || die "$model holds no model (no model.yaml); make one with osdn-tools convert"

say "Packages"
deploy/install-deps.sh build
say "Build ($build_dir)"
build
say "Server"
stop_server
choose_port port
choose_port http_port
address=127.0.0.1:$port
start_server
echo "osdn-server serves $model on $address."
if $once; then
  trap stop_server EXIT
fi
say "A completion, streamed"
"$build_dir/bin/osdn-tools" generate --address "$address" --prompt "$prompt"
if ! $once; then
  print_next_steps
fi
