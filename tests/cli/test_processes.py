"""Two processes on one machine, as two hosts of a cluster would run."""

import signal
import socket
import subprocess
import time

import pytest


@pytest.fixture
def settings(tiny):
  return {**tiny, "mesh.fsdp": 2, "train.steps": 40, "sample.num_prompts": 2,
          "sample.max_new_tokens": 4}  # fmt: skip


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
          # Hosts do not share their caches; the first has them from before.
          "JAXPREF_CACHE": str(launch.cache if number == 0 else tmp_path / "c"),
        },
      )
      for number in range(2)
    ]
    started.extend(new)
    return new

  yield start
  for process in started:
    if process.poll() is None:  # a test has failed: the other one waits
      process.kill()
      process.wait()


def _finish(processes) -> list[str]:
  told = [process.communicate(timeout=300) for process in processes]
  for process, (out, err) in zip(processes, told, strict=True):
    assert process.returncode == 0, out + err
  return [out for out, _ in told]


def test_same_as_one_process(
  launch, start_two, settings, tmp_path, assert_same_run
):
  launch(tmp_path / "one", settings, devices=2)
  first, second = _finish(start_two(tmp_path / "two", settings))
  assert "Report:" in first
  assert "Report:" not in second  # said once, not once a process
  assert_same_run(tmp_path / "one", tmp_path / "two")

  # SIGTERM to the second: both agree on a step and save it.
  workdir = tmp_path / "stopped"
  stopped = {**settings, "train.checkpoint_every": 0}
  processes = start_two(workdir, stopped)
  _wait_for_line(workdir, 3, processes)
  processes[1].send_signal(signal.SIGTERM)
  first, _ = _finish(processes)
  (saved,) = [each.name for each in (workdir / "checkpoints").iterdir()]
  assert f"Stopped by SIGTERM after step {saved}" in first

  first, _ = _finish(start_two(workdir, stopped))
  assert f"Resuming after step {saved}." in first
  assert_same_run(tmp_path / "one", workdir)


def _wait_for_line(workdir, count, processes) -> None:
  path = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not path.exists() or path.read_text().count("\n") < count:
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline
    time.sleep(0.002)
