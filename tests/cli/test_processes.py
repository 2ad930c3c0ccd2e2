"""Two processes on one machine, as two hosts of a cluster would run."""

import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory):
  """Of a mixture of two sources."""
  folder = tmp_path_factory.mktemp("sources")
  rows = pathlib.Path(tiny["data.path"]).read_text().splitlines(keepends=True)
  sources = {}
  for number, weight in enumerate((1, 3)):
    path = folder / f"{number}.jsonl"
    path.write_text("".join(rows[number::2]))
    sources[f"data.sources.part{number}.path"] = path
    sources[f"data.sources.part{number}.weight"] = weight
  return {
    **{key: value for key, value in tiny.items() if key != "data.path"},
    **sources,
    "mesh.fsdp": 2,
    "train.steps": 20,
    "train.checkpoint_every": 4,
    "sample.num_prompts": 2,
    "sample.max_new_tokens": 4,
  }


@pytest.fixture(scope="module")
def launch_one(launch, tmp_path_factory):
  """One process that has two devices."""
  # No references of other tests: those were rounded on another mesh.
  cache = {"JAXPREF_CACHE": str(tmp_path_factory.mktemp("cache"))}

  def run(workdir, settings):
    return launch(workdir, settings, devices=2, environment=cache)

  return run


@pytest.fixture(scope="module")
def one(launch_one, settings, tmp_path_factory):
  """The run folder of one process that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  launch_one(workdir, settings)
  return workdir


@pytest.fixture
def start_two(launch, tmp_path):
  """start_two(workdir, settings, _slurm) -> the two processes."""
  started = []

  def start(workdir, settings, told_by=_plain) -> list[subprocess.Popen[str]]:
    variables = told_by()
    new = [
      launch.start(
        workdir,
        settings,
        environment={
          **variables(number),
          # Hosts need not share their caches: the second begins without.
          "JAXPREF_CACHE": str(tmp_path / f"cache-{number}"),
        },
      )
      for number in range(2)
    ]
    started.extend(new)
    return new

  yield start
  for process in started:
    if process.poll() is None:  # a test has failed, and it waits for the other
      process.kill()
      process.wait()


def test_one_of_two_is_killed(
  one, launch_one, start_two, settings, metrics, tmp_path, assert_same_run
):
  """Two tasks of Slurm; then again two, started by hand, and one alone."""
  workdir = tmp_path / "two"
  processes = start_two(workdir, settings, _slurm)
  _wait_for_line(workdir, 11, processes)
  processes[1].kill()
  processes[1].communicate()
  assert processes[0].poll() is None  # no step without the other
  processes[0].kill()  # `srun --kill-on-bad-exit`
  processes[0].communicate()
  assert 9 <= metrics(workdir)[-1]["step"] < settings["train.steps"]
  shutil.copytree(workdir, tmp_path / "by one")

  first, second = _finish(start_two(workdir, settings))
  again = launch_one(tmp_path / "by one", settings).stdout
  assert "Report:" in first
  assert "Report:" not in second  # said once, not once a process
  saved = re.search(r"Resuming after step (\d+)\.", first)
  # A save waits for the one before, which is then complete.
  assert int(saved[1]) in (4, 8, 12, 16)
  assert saved[0] in again
  for folder in (workdir, tmp_path / "by one"):
    steps = [line["step"] for line in metrics(folder)]
    assert steps == list(range(settings["train.steps"] + 1))
    # All losses, so it was the very next example; and the same parameters.
    assert_same_run(one, folder)


@pytest.mark.certify
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_stops_both(
  one, start_two, settings, tmp_path, assert_same_run, told
):
  settings = {**settings, "train.checkpoint_every": 0}
  workdir = tmp_path / "stopped"
  processes = start_two(workdir, settings)
  _wait_for_line(workdir, 3, processes)
  processes[told].send_signal(signal.SIGTERM)
  first, _ = _finish(processes)
  (saved,) = [each.name for each in (workdir / "checkpoints").iterdir()]
  assert f"Stopped by SIGTERM after step {saved}" in first

  first, _ = _finish(start_two(workdir, settings))
  assert f"Resuming after step {saved}." in first
  assert_same_run(one, workdir)


@pytest.mark.parametrize(
  ("given", "named"),
  [
    ({}, "Number of processes"),
    ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "'two'"),
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "Process 2 of 2"),
    ({"JAX_COORDINATOR_ADDRESS": "node"}, "HOST:PORT"),
  ],
  ids=["nothing", "no number", "too large", "no port"],
)
def test_processes_that_cannot_join(launch, settings, tmp_path, given, named):
  done = launch(
    tmp_path / "run",
    settings,
    environment={"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **given},
    status=2,
  )
  assert "Traceback" not in done.stderr
  told = " ".join(done.stderr.split())
  assert named in told
  assert "JAX_NUM_PROCESSES" in told


def _plain():
  """number -> what a user sets by hand."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return lambda number: {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(number),
  }


def _slurm():
  """number -> what `srun --ntasks=2` sets; JAX makes a port of the job's id."""
  first, count = 65536 - 4096, 4096
  start = random.SystemRandom().randrange(count)
  job = next(job for job in range(start, start + count) if _is_free(first, job))
  return lambda number: {
    "SLURM_JOB_ID": str(job),
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(number),
    "SLURM_LOCALID": str(number),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
  }


def _is_free(first: int, job: int) -> bool:
  with socket.socket() as free:
    try:
      free.bind(("127.0.0.1", first + job % 4096))
    except OSError:
      return False
  return True


def _finish(processes: list[subprocess.Popen[str]]) -> list[str]:
  told = [process.communicate(timeout=300) for process in processes]
  for process, (out, err) in zip(processes, told, strict=True):
    assert process.returncode == 0, out + err
  return [out for out, _ in told]


def _wait_for_line(
  workdir: pathlib.Path, count: int, processes: list[subprocess.Popen[str]]
) -> None:
  path = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not path.exists() or path.read_text().count("\n") < count:
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline
    time.sleep(0.002)
