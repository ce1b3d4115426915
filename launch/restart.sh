#!/usr/bin/env bash
# launch/restart.sh COMMAND [ARGUMENT...]: runs the command again and again until it is finished.
#
# jaxft says by its exit code what happened. Three end the loop, with that code:
#   0    finished
#   2    the same command would end the same way: a mistake of the user (a config, a path), steps that are not finite
#   130  Ctrl-C
# Everything else is run again, and goes on from the last checkpoint: 143 and 137 (SIGTERM and SIGKILL from elsewhere),
# 134 and 139 (a crash), 1 (another process is gone, a full disk, too little memory).
#
# A SIGTERM or SIGINT to this script is passed on; it waits until the command has saved, and does not run it again.
#
# Settings, as environment variables:
#   ENDS="0 2 130"  the codes that end the loop
#   PAUSE=60        seconds before the next try. More than the 40 s after which the other processes of a run notice that
#                   one is gone: who comes back sooner meets those of the old run
#   QUICK=600       seconds: what fails sooner than this after its start has probably come no further
#   MAX_QUICK=3     after so many quick failures one after the other it gives up, with the code of the last
#   DRY_RUN=1       only prints the command
set -euo pipefail
set -m # the command gets a process group of its own, so that Ctrl-C reaches it once, by us, and not twice

if (($# == 0)); then
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2
  exit 2
fi
: "${ENDS:=0 2 130}" "${PAUSE:=60}" "${QUICK:=600}" "${MAX_QUICK:=3}"
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "$@"
  echo
  exit 0
fi

say() { echo "restart.sh: $*" >&2; }

stopped='' interrupted='' child=''
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  stopped=1 interrupted=1
  [ -z "$child" ] || kill "-$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# Starts what it is given and waits for it; `code` is its exit code. A signal to us ends `wait`, not the child.
attend() {
  "$@" &
  child=$!
  while true; do
    interrupted='' code=0
    wait "$child" || code=$?
    [ -n "$interrupted" ] || break
  done
  child=''
}

quick=0
while [ -z "$stopped" ]; do
  began=$SECONDS
  attend "$@"
  case " $ENDS " in *" $code "*) exit "$code" ;; esac
  [ -z "$stopped" ] || exit "$code"
  if ((SECONDS - began < QUICK)); then quick=$((quick + 1)); else quick=0; fi
  if ((quick >= MAX_QUICK)); then
    say "exit code $code, for the ${quick}th time within $QUICK s of the start: given up"
    exit "$code"
  fi
  say "exit code $code; once more in $PAUSE s"
  attend sleep "$PAUSE"
done
exit 143 # stopped between two tries
