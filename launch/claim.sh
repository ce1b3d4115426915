#!/usr/bin/env bash
# launch/claim.sh OWNER ARGUMENT...: makes the run folder named by --workdir ours, before any process starts in it.
#
# A run holds its folder by run.lock. When its machine is taken away, the lock stays behind, and on a file system that
# several hosts share jaxft does not take it over from another host: that one may be alive, for all it knows. Whoever
# calls this script knows better: the machines that OWNER (a SLURM job, a queued resource) had are gone, since it was
# given new ones. So if OWNER was the last that was started in this folder, its old lock is removed. If somebody else was
# started there since, nothing is touched, and the lock decides. Of a run in a bucket there is nothing to do.
set -euo pipefail

owner=$1
shift
workdir=
while (($#)); do
  case $1 in
    --workdir=*) workdir=${1#--workdir=} ;;
    --workdir)
      workdir=${2:-}
      shift
      ;;
  esac
  shift
done
if [ -z "$workdir" ]; then
  echo "claim.sh: give --workdir=FOLDER, on a file system that all processes share and that outlives the machines" >&2
  exit 2
fi
if [ -n "${DRY_RUN:-}" ]; then
  echo "claim $workdir for $owner"
  exit 0
fi
case $workdir in *://*) exit 0 ;; esac # a run in a bucket has a lease that dies with its holder (docs/storage.md)
cd "$(dirname "${BASH_SOURCE[0]}")/.." # where the program is started: a relative folder counts from there
mkdir -p "$workdir"
if [ "$(cat "$workdir/launched-by" 2>/dev/null)" = "$owner" ] && [ -e "$workdir/run.lock" ]; then
  echo "claim.sh: removed $workdir/run.lock, which $owner had left behind" >&2
  rm -f "$workdir/run.lock"
fi
echo "$owner" >"$workdir/launched-by"
