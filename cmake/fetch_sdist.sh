#!/usr/bin/env bash
# Fetches the source package of a PyPI project with pip, checks its sha256 and leaves it at DIR/NAME-VERSION.tar.gz.
# Usage: cmake/fetch_sdist.sh NAME VERSION SHA256 DIR
# pip comes from Debian's python3-pip (deploy/install-deps.sh); set OSDN_PYTHON to use another Python.
set -euo pipefail

if [[ $# -ne 4 ]]; then
  echo "usage: $0 NAME VERSION SHA256 DIR" >&2
  exit 2
fi
name=$1 version=$2 sha256=$3 dir=$4
python=${OSDN_PYTHON:-/usr/bin/python3}
archive="$dir/$name-$version.tar.gz"

matches() { [[ -f $1 ]] && echo "$sha256  $1" | sha256sum --check --status; }

if matches "$archive"; then
  exit 0
fi
mkdir -p "$dir"
work=$(mktemp -d "$dir/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT

if ! "$python" -m pip --version >/dev/null 2>&1; then
  echo "fetch_sdist: $python has no pip; run deploy/install-deps.sh, or put $name-$version.tar.gz" \
       "(sha256 $sha256) into $dir yourself" >&2
  exit 1
fi
# pip reads a source package's metadata with the setuptools that is installed, so nothing else is fetched.
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --no-binary :all: --dest "$work" "$name==$version"
if ! matches "$work/$name-$version.tar.gz"; then
  echo "fetch_sdist: $name-$version.tar.gz from PyPI has sha256" \
       "$(sha256sum "$work/$name-$version.tar.gz" | cut -d' ' -f1), expected $sha256" >&2
  exit 1
fi
mv "$work/$name-$version.tar.gz" "$archive"  # same file system: whoever comes second replaces it by its equal
