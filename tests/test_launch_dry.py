"""What the scripts of launch/ say with DRY_RUN=1, where there is no gcloud, no SLURM and no TPU."""

import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACE = {"NAME": "mine", "ZONE": "here", "TYPE": "v5litepod-8"}


@pytest.fixture
def run(tmp_path):
    """Runs a script; it must end by `code`, and leave nothing."""

    def run(name, *arguments, code=0, **settings):
        command = ["bash", str(ROOT / "launch" / name), *arguments, f"--workdir={tmp_path}/run"]
        env = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)} | settings
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert not list(tmp_path.iterdir())
        return done

    return run


def verbs(done):
    return [shlex.split(line)[4] for line in done.stdout.splitlines() if line.startswith("gcloud ")]


@pytest.mark.parametrize("keep, deletes", [("", 1), ("1", 0)])
def test_queued_tpus_are_given_back_where_a_run_would_do_it(run, keep, deletes):
    told = verbs(run("queued_resource.sh", "run", DRY_RUN="1", KEEP=keep, **PLACE))
    assert told[0] == "create" and told.count("delete") == deletes


def test_nothing_is_said_to_have_started(run):
    done = run("tpu_vm.sh", "run", DRY_RUN="1", **PLACE)
    assert verbs(done) == ["create", "scp", "ssh", "ssh"] and done.stderr == ""


def test_outside_slurm_a_dry_run_needs_no_job_and_a_run_says_what_it_needs(run, tmp_path):
    claimed, command = run("slurm.sbatch", "--empty=", DRY_RUN="1").stdout.splitlines()
    assert claimed == f"claim {tmp_path}/run for slurm job NUMBER"
    told = ["srun", "--kill-on-bad-exit=0", "python", "-m", "jaxft.main", "--empty=", f"--workdir={tmp_path}/run"]
    assert shlex.split(command) == told
    assert run("slurm.sbatch", code=2).stderr.startswith("slurm.sbatch: this is no SLURM job; give it to sbatch")
