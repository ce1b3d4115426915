"""A stand-in for gcloud, with two hosts that are folders here. test_launch.py puts it on PATH as `gcloud`.

It writes every call to $CLOUD/calls.jsonl and refuses flags that gcloud does not have. `ssh` and `scp` really happen,
with the host's folder as HOME. $CLOUD/lives.json lists, for every life of a resource (from `create` to `delete`), the
states that `describe` tells one after the other; the last one stays. A state that takes the TPUs away kills what runs
there.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
HOSTS = [CLOUD / "host0", CLOUD / "host1"]
BOTH = {"--zone", "--project", "--quiet"}
SSH = BOTH | {"--worker", "--command"}
CREATE = BOTH | {"--accelerator-type", "--spot", "--reserved", "--network", "--subnetwork", "--labels", "--metadata"}
# Of `gcloud help` (528.0.0), what a launcher may want.
FLAGS = {
    "tpu-vm": {
        "create": CREATE | {"--version", "--preemptible"},
        "describe": BOTH | {"--format"},
        "ssh": SSH,
        "scp": BOTH | {"--worker"},
        "delete": BOTH,
    },
    "queued-resources": {
        "create": CREATE | {"--runtime-version", "--node-id", "--node-count", "--node-prefix"},
        "describe": BOTH | {"--format"},
        "ssh": SSH | {"--node"},
        "scp": BOTH | {"--node", "--worker"},
        "delete": BOTH | {"--force"},
    },
}
GONE = ("SUSPENDED", "FAILED", "PREEMPTED")


def main(argv):
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(argv) + "\n")
    compute, tpus, kind, verb, *rest = argv
    assert (compute, tpus) == ("compute", "tpus")
    flags = dict(one.partition("=")[::2] for one in rest if one.startswith("--"))
    assert not (unknown := flags.keys() - FLAGS[kind][verb]), unknown
    names = [one for one in rest if not one.startswith("--")]
    return globals()[verb](names, flags)


def lives():
    return json.loads((CLOUD / "lives.json").read_text())


def now():
    """The states still to come of this life; None before and after one."""
    path = CLOUD / "now.json"
    return json.loads(path.read_text()) if path.exists() else None


def create(_names, _flags):
    assert now() is None, "it is there already"
    first, *others = lives()
    (CLOUD / "lives.json").write_text(json.dumps(others))
    (CLOUD / "now.json").write_text(json.dumps(first))
    for host in HOSTS:
        host.mkdir()
    return 0


def describe(names, _flags):
    if (states := now()) is None:
        sys.stderr.write(f"ERROR: (gcloud) NOT_FOUND: Resource {names[0]!r} was not found\n")
        return 1
    if len(states) > 1:
        (CLOUD / "now.json").write_text(json.dumps(states[1:]))
    if states[0] in GONE:
        wipe()
    print(states[0])
    return 0


def delete(_names, _flags):
    wipe()
    (CLOUD / "now.json").unlink()
    return 0


def wipe():
    for host in HOSTS:
        for file in (host / "jaxft-run" / "pid", host / "pids"):
            for pid in file.read_text().split() if file.exists() else ():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)
        shutil.rmtree(host, ignore_errors=True)


def chosen(flags):
    return HOSTS if flags["--worker"] == "all" else [HOSTS[int(flags["--worker"])]]


def ssh(_names, flags):
    for host in chosen(flags):
        done = subprocess.run(["bash", "-c", flags["--command"]], cwd=host, env={**os.environ, "HOME": str(host)})
        if done.returncode:
            return done.returncode
    return 0


def scp(names, flags):
    source, target = names
    for host in chosen(flags):
        shutil.copy(source, host / target.partition(":")[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
