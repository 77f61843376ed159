#!/usr/bin/env bash
# The entry of a pack (tests/device.sh pack): unpacks it once and runs its tests/device.sh with the
# arguments given. Start it from the root of a checkout, which has models/ and tests/data/.
set -euo pipefail
pack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${TMPDIR:-/tmp}/osdn-device-$(cat "$pack"/*.tar.* | cksum | cut -d' ' -f1)
if [[ ! -d $target ]]; then
  rm -rf "$target.part"
  mkdir -p "$target.part"
  # Python has the decompressors even where xz is not installed.
  python3 -c 'import sys, tarfile
for name in sys.argv[2:]:
    tarfile.open(name).extractall(sys.argv[1])' "$target.part" "$pack"/*.tar.* 2>/dev/null
  mv "$target.part" "$target"
fi
OSDN_REPOSITORY=${OSDN_REPOSITORY:-$PWD} exec bash "$target/tests/device.sh" "$@"
