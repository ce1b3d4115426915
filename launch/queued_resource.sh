#!/usr/bin/env bash
# TPUs as a queued resource: waits for them, runs, and begins again on new ones when they are taken away. One slice, or
# several that train together (multi-slice).
#
#   launch/queued_resource.sh run ARGUMENT..  asks for the TPUs unless they are there, waits, installs jaxft on all hosts
#                                             of all slices, starts python -m jaxft.main ARGUMENT.., and watches until it
#                                             is finished; its exit code is that of the run. Started again it goes on
#                                             watching. ARGUMENTs must hold --workdir=FOLDER on a shared file system.
#   launch/queued_resource.sh log             follows the log of the first host
#   launch/queued_resource.sh status          what each host does: running, exit CODE, gone
#   launch/queued_resource.sh stop            SIGTERM to all: the run saves a checkpoint and ends
#   launch/queued_resource.sh delete          gives the TPUs back, and deletes all that lies on their disks
#
# Settings, as environment variables:
#   NAME=my-run ZONE=us-west4-a      which one; PROJECT= another Google Cloud project than gcloud's own
#   TYPE=v5litepod-16                v5litepod-8, v5p-8, v6e-8, ...
#   SLICES=1                         how many slices of that type
#   SPOT=1 or RESERVED=1             cheaper, and may be taken away; or of your reservation. Else on demand
#   SETUP='sudo mount ...'           a command for every host before the installation: mount the shared file system
#   KEEP=1                           keeps the TPUs when the run has ended; else they are given back (they cost money)
#   POLL=60 MAX_FAILED=5             seconds between two looks; after so many failures without progress it gives up
#   RUNTIME= PYTHON=3.12 EXTRA=tpu   version of the TPU software (by TYPE), Python, extra of jaxft
#   CREATE_FLAGS='--network=mine'    more flags for gcloud ... create, parted by blanks
#   DRY_RUN=1                        prints the commands of an undisturbed run instead of running them
#
# A run that ends by 0 (finished) or 2 (a mistake that a restart does not mend) is not started again.
# Never run against the cloud: its calls of gcloud are tested with a stand-in and checked against gcloud's own parser.
set -euo pipefail

# shellcheck disable=SC2034 # tpu.sh reads them
kind=queued-resources all=(--node=all --worker=all) first=(--node=0 --worker=0)
# shellcheck source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
: "${SLICES:=1}" "${RESERVED:=}" "${KEEP:=}" "${POLL:=60}" "${MAX_FAILED:=5}"

request() {
  if ((SLICES > 1)); then set -- "--node-count=$SLICES" "--node-prefix=$NAME"; else set -- "--node-id=$NAME"; fi
  [ -z "$RESERVED" ] || set -- "$@" --reserved
  create --runtime-version "$@"
}

give_back() { tpus delete "$NAME" --force; }

# The state of the request (cloud.google.com/tpu/docs/queued-resources); ABSENT, or UNKNOWN when gcloud does not tell.
request_state() {
  local told
  if told=$(tpus describe "$NAME" --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$told"
  elif [[ $told == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$told" >&2
    echo UNKNOWN
  fi
}

# What the hosts do together: running, partly (some do not), idle, "exit CODE"; nothing when none answers.
run_state() {
  local told codes
  told=$(on_all "if [ -e jaxft ]; then $(worker status); else echo jaxft-worker: gone; fi" 2>/dev/null |
    grep '^jaxft-worker') || true
  codes=$(sed -n 's/.*: exit //p' <<<"$told" | sort -n)
  case $told in
    *': running'*': gone'* | *': gone'*': running'*) echo partly ;; # a host was rebooted, say
    *': running'*) echo running ;;
    *': gone'*) echo idle ;;
    ?*) # 2 before what it led to in the others, and any failure before 0
      if grep -qx 2 <<<"$codes"; then echo 'exit 2'; else echo "exit $(tail -n 1 <<<"$codes")"; fi
      ;;
  esac
}

# start: on the hosts where nothing runs. begin: where nothing runs at all, so that whose lock it is can be settled.
start() { on_all "$(worker start "$@")"; }
begin() { on_first "$(quoted bash jaxft/launch/claim.sh "queued resource $NAME" "$@")" && start "$@"; }

# Counts what went wrong since the run was last seen running, and gives up in the end.
failed=0
went_wrong() {
  failed=$((failed + 1))
  say "$*"
  if ((failed >= MAX_FAILED)); then
    say "given up after $failed failures one after the other; the resource $NAME may still be there, and cost money"
    exit 1
  fi
}

finish() {
  say "the run has ended with exit code $1"
  [ -n "$KEEP" ] || give_back || say "the resource $NAME could not be deleted, and costs money"
  exit "$1"
}

# One look at TPUs that are there. `ours`: this script has started the run, or has found it running.
look() {
  local state
  state=$(run_state)
  case ${ours:-new}:$state in
    *:) went_wrong "no host answers" ;;
    *:running) ours=yes failed=0 ;;
    *:partly)
      ours=yes
      start "$@" || went_wrong "the run could not be started on all hosts"
      ;;
    new:*)
      if install_everywhere && begin "$@"; then
        ours=yes
        say "started; follow it by: NAME=$NAME ZONE=$ZONE $0 log"
      else
        went_wrong "the run could not be started"
      fi
      ;;
    *:idle) begin "$@" || went_wrong "the run could not be started again" ;;
    *:exit*) finish "${state#exit }" ;;
  esac
}

run() {
  require NAME ZONE TYPE
  DRY_RUN=1 bash "$root/launch/claim.sh" nobody "$@" >/dev/null # refuses when there is no --workdir
  if [ -n "$DRY_RUN" ]; then
    request && install_everywhere && begin "$@" && { [ -n "$KEEP" ] || give_back; }
    return
  fi
  local ours='' before='' state
  while true; do
    state=$(request_state)
    [ "$state" = "$before" ] || say "$NAME: $state"
    before=$state
    case $state in
      ACTIVE) look "$@" ;;
      ABSENT) request || went_wrong "the request was refused" ;;
      SUSPENDED | FAILED) # taken away, or never given: such a request stays as it is, and only a new one is served
        ours=''
        [ "$state" = SUSPENDED ] || went_wrong "the request has failed"
        give_back || went_wrong "it could not be deleted"
        ;;
      UNKNOWN) went_wrong "gcloud does not tell the state of $NAME" ;;
      *) ;; # WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING, ...
    esac
    sleep "$POLL"
  done
}

verb=${1:-}
(($# == 0)) || shift
case $verb in
  run) run "$@" ;;
  '' | -h | --help) usage ;;
  *)
    require NAME ZONE
    case $verb in
      delete) give_back ;;
      *) common_verb "$verb" ;;
    esac
    ;;
esac
