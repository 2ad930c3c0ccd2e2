"""Two processes on one machine, as two hosts of a cluster would run."""

import pathlib
import signal
import socket
import subprocess
import time

import pytest


@pytest.fixture
def settings(tiny):
  return {
    **tiny,
    "mesh.fsdp": 2,
    "train.steps": 30,
    "train.checkpoint_every": 20,
    "sample.num_prompts": 2,
    "sample.max_new_tokens": 4,
  }


@pytest.fixture
def launch_one(launch, tmp_path):
  """One process that has two devices."""
  # No references of other tests: those were rounded on another mesh.
  cache = {"JAXPREF_CACHE": str(tmp_path / "cache-0")}

  def run(workdir, settings) -> None:
    launch(workdir, settings, devices=2, environment=cache)

  return run


@pytest.fixture
def start_two(launch, tmp_path):
  """start_two(workdir, settings) -> the two processes."""
  started = []

  def start(workdir, settings) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    new = [
      launch.start(
        workdir,
        settings,
        environment={
          "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
          "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": str(number),
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


def test_same_as_one_process(
  launch_one, start_two, settings, tmp_path, assert_same_run
):
  launch_one(tmp_path / "one", settings)
  first, second = _finish(start_two(tmp_path / "two", settings))
  assert "Report:" in first
  assert "Report:" not in second  # said once, not once a process
  assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.certify
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_stops_both(
  launch_one, start_two, settings, tmp_path, assert_same_run, told
):
  settings = {**settings, "train.checkpoint_every": 0}
  launch_one(tmp_path / "one", settings)
  workdir = tmp_path / "stopped"
  processes = start_two(workdir, settings)
  _wait_for_line(workdir, 3, processes)
  processes[told].send_signal(signal.SIGTERM)
  first, _ = _finish(processes)
  (saved,) = [each.name for each in (workdir / "checkpoints").iterdir()]
  assert f"Stopped by SIGTERM after step {saved}" in first

  first, _ = _finish(start_two(workdir, settings))
  assert f"Resuming after step {saved}." in first
  assert_same_run(tmp_path / "one", workdir)


@pytest.mark.parametrize(
  ("given", "named"),
  [
    ({}, "Number of processes"),
    ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "'two'"),
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "process_id=2"),
  ],
  ids=["nothing", "no number", "too large"],
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
