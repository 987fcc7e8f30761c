#!/usr/bin/env bash
# Run one worker of a job: its output goes to DIR/ID.log, and how it ended to DIR/ID.status, as
# "seconds-since-1970 exit-status host", so that the first to fail can be found. ID is the number of the
# Slurm task, or else the name of the host.
# usage: worker.sh DIR COMMAND...
set -u
dir=$1 id=${SLURM_PROCID:-$(hostname)}
shift
mkdir -p "$dir"
rm -f "$dir/$id.status"
# The command handles signals: wait for it to save. (A handler, unlike '', is not inherited.)
trap : TERM INT
(
  echo "$BASHPID" >"$dir/$id.pid"
  exec "$@"
) >>"$dir/$id.log" 2>&1
status=$?
echo "$(date +%s.%N) $status $(hostname)" >"$dir/$id.status.new"
mv "$dir/$id.status.new" "$dir/$id.status"
rm -f "$dir/$id.pid"
exit "$status"
