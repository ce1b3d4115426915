#!/usr/bin/env bash
# What happens on each host of a TPU; tpu_vm.sh and queued_resource.sh call it there, by ssh.
#
#   worker.sh install           a virtual environment with this project and the extra $EXTRA (tpu)
#   worker.sh start ARGUMENT..  python -m jaxft.main ARGUMENT.., under restart.sh, detached from the ssh session
#   worker.sh status            one line: running, exit CODE, or gone (nothing runs, and nothing said how it ended)
#   worker.sh stop              SIGTERM: the run saves and ends
#
# A run that ended by SIGTERM without `stop` counts as gone: the host was shut down, and it is to go on.
# A second `start` while something runs changes nothing. The log is ~/jaxft-run/log.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$HOME/jaxft-venv
run=$HOME/jaxft-run # log; pid; exit: the code it ended with; stop: somebody asked for it
: "${PYTHON:=3.12}" "${EXTRA:=tpu}"

# Not kill -0: after a reboot the number may be that of another process.
alive() { [ -e "$run/pid" ] && grep -qs worker.sh "/proc/$(cat "$run/pid")/cmdline"; }

state() {
  local code
  code=$(cat "$run/exit" 2>/dev/null) || true
  if alive; then
    echo running
  elif [ -z "$code" ] || { [ "$code" = 143 ] && [ ! -e "$run/stop" ]; }; then
    echo gone
  else
    echo "exit $code"
  fi
}

case ${1:-} in
  install)
    # The TPU images of Ubuntu 22.04 have Python 3.10, which is too old; uv brings its own. It goes to ~/.local, which
    # newer systems forbid by default, lest it hide their own packages.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    [ -e "$venv/bin/python" ] || "$HOME/.local/bin/uv" venv --quiet --python "$PYTHON" "$venv"
    "$HOME/.local/bin/uv" pip install --quiet --python "$venv/bin/python" --editable "$here/..[$EXTRA]"
    ;;
  start)
    shift
    if alive; then
      echo "$(hostname): runs already" >&2
      exit 0
    fi
    mkdir -p "$run"
    rm -f "$run/exit" "$run/stop"
    setsid nohup bash "$here/worker.sh" _run "$@" </dev/null >>"$run/log" 2>&1 &
    echo $! >"$run/pid"
    ;;
  _run) # below setsid: the leader of a session and a group of its own
    shift
    trap : TERM # `stop` signals the whole group; this shell stays to write down how it ended
    code=0
    cd "$here/.."
    # On a TPU VM jax learns from the metadata server who the others are, but only when it is asked to: auto.
    bash "$here/restart.sh" "$venv/bin/python" -m jaxft.main --coordinator=auto "$@" || code=$?
    echo "$code" >"$run/exit"
    ;;
  status)
    echo "jaxft-worker $(hostname): $(state)"
    ;;
  stop)
    if alive; then
      touch "$run/stop"
      kill -TERM -- "-$(cat "$run/pid")"
    fi
    ;;
  *)
    awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0" >&2
    exit 2
    ;;
esac
