#!/usr/bin/env bash
# Mount a bucket on this Cloud TPU VM with gcsfuse, which is installed if it is not there.
# usage: mount.sh BUCKET PREFIX PATH     (PREFIX: a part of the bucket, or "" for all of it)
set -euo pipefail
bucket=$1 prefix=$2 path=$3
if mountpoint --quiet "$path" 2>/dev/null; then
  exit 0
fi
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A machine that has just started updates itself: wait for it.
  sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet --quiet
  sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --quiet --yes gcsfuse
fi
sudo mkdir -p "$path"
sudo chown "$(id -u):$(id -g)" "$path"
options=(--implicit-dirs)
[ -z "$prefix" ] || options+=(--only-dir "$prefix")
gcsfuse "${options[@]}" "$bucket" "$path"
