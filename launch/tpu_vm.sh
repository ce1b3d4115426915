#!/usr/bin/env bash
# One TPU VM, or all hosts of a TPU slice.
#
#   launch/tpu_vm.sh run ARGUMENT..   creates the TPU unless it is there, installs jaxft on all its hosts, and starts
#                                     python -m jaxft.main ARGUMENT.. on all; it goes on when this terminal is closed
#   launch/tpu_vm.sh log              follows the log of the first host (Ctrl-C ends the looking, not the run)
#   launch/tpu_vm.sh status           what each host does: running, exit CODE, gone
#   launch/tpu_vm.sh stop             SIGTERM to all: the run saves a checkpoint and ends
#   launch/tpu_vm.sh delete           deletes the TPU, and with it all that lies on its disks
#
# Settings, as environment variables:
#   NAME=my-tpu ZONE=us-west4-a      which one; PROJECT= another Google Cloud project than gcloud's own
#   TYPE=v5litepod-8                 v5litepod-8, v5p-8, v6e-8, ...: for a TPU that is to be created
#   SPOT=1                           cheaper, and may be taken away; only queued_resource.sh brings it back by itself
#   SETUP='sudo mount ...'           a command for every host before the installation, such as mounting a shared disk
#   RUNTIME= PYTHON=3.12 EXTRA=tpu   version of the TPU software (by TYPE), Python, extra of jaxft
#   CREATE_FLAGS='--network=mine'    more flags for gcloud ... create, parted by blanks
#   DRY_RUN=1                        prints the commands instead of running them
#
# A slice of several hosts needs --workdir=FOLDER on a file system that all of them see: see docs/launch.md.
# Never run against the cloud: its calls of gcloud are tested with a stand-in and checked against gcloud's own parser.
set -euo pipefail

# shellcheck disable=SC2034 # tpu.sh reads them
kind=tpu-vm all=(--worker=all) first=(--worker=0)
# shellcheck source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

# READY, CREATING, PREEMPTED, ...; nothing when there is no such TPU.
state() { [ -n "$DRY_RUN" ] || tpus describe "$NAME" --format='value(state)' 2>/dev/null || true; }

run() {
  require NAME ZONE
  local found
  found=$(state)
  case $found in
    READY) ;;
    '')
      require TYPE
      create --version
      ;;
    *)
      say "$NAME is in state $found; wait, or delete it: NAME=$NAME ZONE=$ZONE $0 delete"
      exit 1
      ;;
  esac
  install_everywhere
  on_all "$(worker start "$@")"
  [ -n "$DRY_RUN" ] || say "started; follow it by: NAME=$NAME ZONE=$ZONE $0 log"
}

verb=${1:-}
(($# == 0)) || shift
case $verb in
  run) run "$@" ;;
  '' | -h | --help) usage ;;
  *)
    require NAME ZONE
    case $verb in
      delete) tpus delete "$NAME" ;;
      *) common_verb "$verb" ;;
    esac
    ;;
esac
