# shellcheck shell=bash
# What tpu_vm.sh and queued_resource.sh share; they source it. Each says beforehand by `kind`, `all` and `first` which
# group of `gcloud compute tpus` it uses, and which flags name all hosts there, and the first one.
#
# The flags of gcloud are those of its reference (cloud.google.com/sdk/gcloud/reference/compute/tpus), and the versions
# of the runtime those of cloud.google.com/tpu/docs/runtimes. It runs in the bash 3.2 of a Mac, too.

: "${kind:?}" "${all:?}" "${first:?}"
: "${NAME:=}" "${ZONE:=}" "${TYPE:=}" "${PROJECT:=}" "${RUNTIME:=}" "${SPOT:=}" "${SETUP:=}" "${CREATE_FLAGS:=}"
: "${PYTHON:=3.12}" "${EXTRA:=tpu}" "${DRY_RUN:=}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "$(basename "$0"): $*" >&2; }

# The comment at the head of the script is its usage text.
usage() {
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2
  exit 2
}

require() {
  local name
  for name in "$@"; do
    if [ -z "${!name}" ]; then
      say "set $name; without arguments this script says what it needs"
      exit 2
    fi
  done
}

# Words as one string that a shell reads back as the same words.
quoted() { printf '%q ' "$@"; }

# gcloud compute tpus KIND VERB .., or with DRY_RUN the command itself on standard output. Quiet: it asks nothing.
tpus() {
  local verb=$1
  shift
  local command=(gcloud compute tpus "$kind" "$verb" "$@" "--zone=$ZONE" --quiet)
  [ -z "$PROJECT" ] || command+=("--project=$PROJECT")
  if [ -n "$DRY_RUN" ]; then
    quoted "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

# Run a command by ssh.
on_all() { tpus ssh "$NAME" "${all[@]}" "--command=$1"; }
on_first() { tpus ssh "$NAME" "${first[@]}" "--command=$1"; }

runtime() {
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;; # v4 and before
  esac
}

# create VERSION_FLAG FLAG..: what both kinds have in common, and what each adds.
create() {
  local version=$1
  shift
  [ -z "$SPOT" ] || set -- "$@" --spot
  # shellcheck disable=SC2086 # several flags in one setting
  tpus create "$NAME" "--accelerator-type=$TYPE" "$version=${RUNTIME:-$(runtime)}" "$@" $CREATE_FLAGS
}

# The project as it stands: what git tracks or would track, not what it ignores.
pack() {
  local file
  cd "$root" || return
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar -czf "$1" --null -T -
}

# Callers go on after a failure, which turns `set -e` off in here: hence the chain.
install_everywhere() {
  local folder code=0
  folder=$(mktemp -d)
  (pack "$folder/jaxft.tar.gz") &&
    tpus scp "$folder/jaxft.tar.gz" "$NAME:" "${all[@]}" &&
    if [ -n "$SETUP" ]; then on_all "$SETUP"; fi &&
    on_all "mkdir -p jaxft && tar -xzf jaxft.tar.gz -C jaxft && $(
      quoted env "PYTHON=$PYTHON" "EXTRA=$EXTRA" bash jaxft/launch/worker.sh install
    )" || code=$?
  rm -rf "$folder"
  return "$code"
}

worker() { quoted bash jaxft/launch/worker.sh "$@"; }

# The verbs that both scripts have alike.
common_verb() {
  case $1 in
    status) on_all "$(worker status)" ;;
    log) on_first "tail -n 100 -F jaxft-run/log" ;;
    stop) on_all "$(worker stop)" ;;
    *) usage ;;
  esac
}
