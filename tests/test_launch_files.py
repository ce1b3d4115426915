"""The files of launch/ that others read: Kubernetes, Docker, people."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
KUBERNETES = "1.33"

BOOL, WHOLE, NAME = {"type": "boolean"}, {"type": "integer", "minimum": 1}, {"pattern": "^[a-z][a-z0-9-]*$"}
# Why a Job can have failed.
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"]


def exactly(required, **fields):
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


RULE = exactly(
    ["name", "action", "onJobFailureReasons"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons={"type": "array", "items": {"enum": REASONS}},
)
# After jobset_types.go of github.com/kubernetes-sigs/jobset, as far as we use it; a Job has a schema of Kubernetes.
JOBSET = exactly(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=exactly(["name"], name=NAME, annotations={"type": "object", "additionalProperties": {"type": "string"}}),
    spec=exactly(
        ["replicatedJobs", "failurePolicy"],
        network=exactly([], enableDNSHostnames=BOOL, publishNotReadyAddresses=BOOL),
        failurePolicy=exactly(
            ["maxRestarts", "rules"],
            maxRestarts=WHOLE,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules={"type": "array", "items": RULE},
        ),
        replicatedJobs={
            "type": "array",
            "items": exactly(["name", "template"], name=NAME, replicas=WHOLE, template={"type": "object"}),
        },
    ),
)


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


@pytest.fixture(scope="module")
def jobset():
    (only,) = documents("gke_jobset.yaml")
    return only


@pytest.fixture(scope="module")
def job(jobset):
    (only,) = jobset["spec"]["replicatedJobs"]
    return only["template"]["spec"]


def test_the_jobset_and_all_within_are_what_their_schemas_allow(jobset, job):
    jsonschema.validate(jobset, JOBSET)
    metadata = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "jaxft-slice-0"}}
    kubernetes_validate.validate({**metadata, "spec": job}, KUBERNETES, strict=True)
    for document in documents("gke_storage.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_failed_pod_restarts_all_but_exit_code_2_ends_the_jobset(jobset, job):
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    codes = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never", "a podFailurePolicy demands it"
    (failed,) = jobset["spec"]["failurePolicy"]["rules"]
    assert failed["action"] == "FailJobSet" and failed["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_the_numbers_of_pods_hosts_and_chips_agree(job):
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    assert job["parallelism"] == job["completions"]
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert x * y == job["parallelism"] * chips


def test_the_pods_write_to_the_shared_disk_as_the_user_of_the_image(job):
    pod = job["template"]["spec"]
    claim, storage = documents("gke_storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == storage["metadata"]["name"]
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert f"--workdir={mount['mountPath']}/" in " ".join(container["args"])
    assert f"--uid {pod['securityContext']['runAsUser']} " in (LAUNCH / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def docker():
    """Instructions of the Dockerfile in order: (name, rest)."""
    text = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def of(docker, name):
    return [rest for instruction, rest in docker if instruction == name]


def test_the_image_ends_as_a_user_who_is_not_root_in_python_without_a_shell(docker):
    names = [name for name, _ in docker]
    assert names[0] == "FROM" and len(of(docker, "USER")) == 1 and of(docker, "USER") != ["root"]
    assert "RUN" not in names[names.index("USER") :]
    assert json.loads(of(docker, "ENTRYPOINT")[0]) == ["python", "-m", "jaxft.main"]
    (made,) = [run for run in of(docker, "RUN") if "--mode=0700" in run]
    cache = dict(one.split("=") for one in of(docker, "ENV")[0].split())["JAXFT_CACHE_DIR"]
    assert made.endswith(f"--owner={of(docker, 'USER')[0]} --mode=0700 {cache}")


def test_the_image_holds_what_it_installs_and_the_extras_exist(docker):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"EXTRA=(\w+)", (LAUNCH / "Dockerfile").read_text()))
    assert extras == {"tpu", "cuda13"} and extras <= project["optional-dependencies"].keys()
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = [source for copy in of(docker, "COPY") for source in copy.split()[:-1]]
    assert set(copied) == allowed and all((ROOT / source).exists() for source in copied)
    assert {project["readme"], *project["license-files"], "pyproject.toml", "jaxft"} <= allowed


def test_what_the_image_starts_answers_in_a_clean_environment(docker, tmp_path):
    _, *arguments = json.loads(of(docker, "ENTRYPOINT")[0])
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAXFT_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, *arguments, *json.loads(of(docker, "CMD")[0])]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "--coordinator" in done.stdout and "--workdir" in done.stdout, done.stderr


def test_the_page_about_launching_names_every_file():
    page = (ROOT / "docs" / "launch.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name.removesuffix(".dockerignore") in page, path.name
