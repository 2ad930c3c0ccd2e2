"""The scripts of launch/: that they parse, and what they do when stopped."""

import os
import pathlib
import signal
import subprocess
import time
import tomllib

import pytest
import yaml

import jaxpref.launch

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
  path for path in ROOT.glob("launch/*/*") if path.suffix != ".yaml"
)

# Stands for `python -m jaxpref.launch`: SIGTERM makes it save and exit with 0.
_TRAINS = """#!/usr/bin/env bash
trap 'echo saved >>"$LOG"; exit 0' TERM
echo "started $*" >>"$LOG"
while true; do sleep 0.01; done
"""
_FAILS = '#!/usr/bin/env bash\necho "started $*" >>"$LOG"\nexit 2\n'
_FINISHES = '#!/usr/bin/env bash\necho "started $*" >>"$LOG"\n'
# `srun OPTION COMMAND ...`, of one task; scancel finds it by its file.
_SRUN = """#!/usr/bin/env bash
echo $$ >"$LOG.pid"
shift
exec "$@"
"""
_SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >>"$LOG"
kill -TERM "$(cat "$LOG.pid")"
"""
_SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >>"$LOG"\n'


@pytest.fixture
def start(tmp_path):
  """start(script, python) -> its process, with made-up tools on its path."""

  def start(script, *arguments, **tools):
    for name, text in tools.items():
      (tmp_path / name).write_text(text)
      (tmp_path / name).chmod(0o755)
    return subprocess.Popen(
      ["bash", str(ROOT / "launch" / script), *arguments],
      env={
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "JAXPREF_PYTHON": str(tmp_path / "python"),
        "SLURM_JOB_ID": "7",
      },
    )

  return start


def _log(tmp_path):
  path = tmp_path / "log"
  return path.read_text().splitlines() if path.exists() else []


def _wait_for_start(tmp_path):
  deadline = time.monotonic() + 60
  while not _log(tmp_path):
    assert time.monotonic() < deadline
    time.sleep(0.005)


STARTED = "started -m jaxpref.launch --config=a b --workdir=c"
SLURM = {"srun": _SRUN, "scancel": _SCANCEL, "scontrol": _SCONTROL}


def test_there_are_scripts():
  assert {path.parent.name for path in SCRIPTS} == {"slurm", "gke", "tpu_vm"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_parse(path):
  subprocess.run(["bash", "-n", path], check=True)
  assert path.read_text().startswith("#!/usr/bin/env bash\n")


def test_the_folder_is_no_package():
  assert jaxpref.launch.__file__ == str(ROOT / "jaxpref" / "launch.py")
  assert not list(ROOT.glob("launch/**/*.py"))
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())
  found = project["tool"]["setuptools"]["packages"]["find"]
  assert found == {"include": ["jaxpref", "jaxpref.*"]}


def test_slurm_saves_and_requeues_before_its_time_is_up(start, tmp_path):
  process = start(
    "slurm/train.sbatch", "--config=a b", "--workdir=c", python=_TRAINS, **SLURM
  )
  _wait_for_start(tmp_path)
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=60) == 0
  assert _log(tmp_path) == [
    STARTED, "scancel --signal=TERM 7.0", "saved", "scontrol requeue 7"
  ]  # fmt: skip


@pytest.mark.parametrize(("python", "status"), [(_FAILS, 2), (_FINISHES, 0)])
def test_slurm_ends_with_the_run(start, tmp_path, python, status):
  process = start(
    "slurm/train.sbatch", "--config=a b", "--workdir=c", python=python, **SLURM
  )
  assert process.wait(timeout=60) == status
  assert _log(tmp_path) == [STARTED]


def test_a_pod_that_was_stopped_asks_to_begin_again(start, tmp_path):
  process = start("gke/run.sh", "--config=a b", "--workdir=c", python=_TRAINS)
  _wait_for_start(tmp_path)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == 75
  assert _log(tmp_path) == [STARTED, "saved"]


@pytest.mark.parametrize(("python", "status"), [(_FAILS, 2), (_FINISHES, 0)])
def test_a_pod_ends_with_the_run(start, tmp_path, python, status):
  process = start("gke/run.sh", "--config=a b", "--workdir=c", python=python)
  assert process.wait(timeout=60) == status
  assert _log(tmp_path) == [STARTED]


def test_jobset():
  jobset = yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())
  assert jobset["kind"] == "JobSet"
  (job,) = jobset["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  x, y = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert int(x) * int(y) == chips * job["parallelism"]
  assert job["completions"] == job["parallelism"]
  assert f"--config.mesh.fsdp={int(x) * int(y)}" in container["args"]
  assert job["backoffLimit"] == 0  # the JobSet restarts all, or none
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [2]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert (ROOT / container["command"][1]).is_file()
  mounts = [each["mountPath"] for each in container["volumeMounts"]]
  assert any(f"--workdir={mount}/" in container["args"][1] for mount in mounts)


@pytest.mark.parametrize(
  ("addresses", "setting"),
  [
    ("10.0.0.2;10.0.0.3;10.0.0.4", "JAX_COORDINATOR_ADDRESS=10.0.0.2:8482 "),
    ("10.0.0.2", ""),
  ],
  ids=["four hosts", "one host"],
)
def test_tpu_vm(start, tmp_path, addresses, setting):
  gcloud = '#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>"$LOG"\n'
  gcloud += f'[[ "$4" == describe ]] && echo "{addresses}"\nexit 0\n'
  process = start(
    "tpu_vm/train.sh", "my-tpu", "zone", "folder", "--config=a b",
    "--workdir=c", gcloud=gcloud,
  )  # fmt: skip
  assert process.wait(timeout=60) == 0
  asked, started = _log(tmp_path)
  assert "describe my-tpu --zone=zone" in asked
  assert "ssh my-tpu --zone=zone --worker=all" in started
  command = started.split("--command=")[1]
  assert command.replace("  ", " ") == (
    f"cd folder && env {setting}.venv/bin/python -m jaxpref.launch "
    "--config=a\\ b --workdir=c"
  )
