#!/usr/bin/env bash
# Print the end of the log of the worker that failed first, of those that worker.sh ran in DIR.
# usage: first_failure.sh DIR [LINES]
set -u
dir=$1 lines=${2:-40}
first=$(
  for file in "$dir"/*.status; do
    [ -e "$file" ] || continue
    read -r when status host <"$file"
    # 75: stopped by a signal, after saving.
    if [ "$status" != 0 ] && [ "$status" != 75 ]; then
      echo "$when $status $host $file"
    fi
  done | sort -n | head -n 1
)
if [ -z "$first" ]; then
  echo "no worker in $dir has failed"
  exit 0
fi
read -r when status host file <<<"$first"
id=$(basename "$file" .status)
echo "worker $id on $host was the first to fail, at $(date -u -d "@$when" '+%F %T') UTC, with status $status."
echo "The end of its log:"
tail -n "$lines" "$dir/$id.log"
