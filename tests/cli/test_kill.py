"""Killed at any moment and run again: the same bits as never killed."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest


@pytest.fixture(scope="module")
def whole(launch, tiny, tmp_path_factory):
  """The run folder of a run that nobody disturbed."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  launch(workdir, tiny)
  return workdir


@pytest.fixture
def seed() -> int:
  """Of the random moments; pytest shows it where a test fails."""
  seed = random.SystemRandom().randrange(10**6)
  print(f"seed {seed}")
  return seed


def test_killed_at_a_random_step(
  launch, tiny, whole, seed, tmp_path, metrics, assert_same_run
):
  step = random.Random(seed).randrange(1, tiny["train.steps"])
  process = launch.start(tmp_path / "run", tiny)
  _kill_after(process, tmp_path / "run", step)

  done = launch(tmp_path / "run", tiny)
  # A save waits for the one before, which is then complete.
  if step > 2 * tiny["train.checkpoint_every"]:
    assert "Resuming after step" in done.stdout
  steps = [line["step"] for line in metrics(tmp_path / "run")]
  assert steps == list(range(tiny["train.steps"] + 1))
  assert_same_run(whole, tmp_path / "run")


def test_killed_before_the_first_checkpoint(
  launch, tiny, whole, tmp_path, assert_same_run
):
  process = launch.start(tmp_path / "run", tiny)
  _kill_after(process, tmp_path / "run", 0)  # step 0 is evaluated, no more

  # It did not get far, and would not matter if it had.
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  done = launch(tmp_path / "run", tiny)
  assert "Resuming" not in done.stdout
  assert_same_run(whole, tmp_path / "run")


def test_killed_again_and_again_while_it_saves(
  launch, tiny, whole, seed, tmp_path, assert_same_run
):
  chance = random.Random(seed)
  settings = {**tiny, "train.checkpoint_every": 1}
  workdir, reached = tmp_path / "run", 0
  for _ in range(3):
    process = launch.start(workdir, settings)
    reached = _kill_after(process, workdir, reached + 2, chance.uniform(0, 0.2))
    if process.returncode == 0:
      break  # it was done before
  launch(workdir, settings)
  assert_same_run(whole, workdir)


def test_sigterm_saves_within_a_step(
  launch, tiny, whole, tmp_path, metrics, assert_same_run
):
  # No checkpoint but the one that the signal asks for.
  settings = {**tiny, "train.checkpoint_every": 0}
  process = launch.start(tmp_path / "run", settings)
  _wait_for(process, tmp_path / "run", 3)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  reached = metrics(tmp_path / "run")[-1]["step"]
  assert 3 <= reached < tiny["train.steps"]
  assert f"Stopped by SIGTERM after step {reached}" in out
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [
    str(reached)
  ]

  done = launch(tmp_path / "run", settings)
  assert f"Resuming after step {reached}." in done.stdout
  assert_same_run(whole, tmp_path / "run")


def test_sigterm_before_training_leaves_quietly(launch, tiny, tmp_path):
  process = launch.start(tmp_path / "run", tiny)
  process.stdout.readline()  # what was read of the data; then comes training
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "Stopped by SIGTERM" in err
  assert "Traceback" not in err


def test_truncated_checkpoint_is_passed_over(
  launch, tiny, whole, tmp_path, assert_same_run
):
  shutil.copytree(whole, tmp_path / "run")
  newest = tmp_path / "run" / "checkpoints" / str(tiny["train.steps"])
  # Restoring reads the arrays, which are the largest file of all.
  files = [each for each in newest.rglob("*") if each.is_file()]
  largest = max(files, key=lambda each: each.stat().st_size)
  content = largest.read_bytes()
  largest.write_bytes(content[: len(content) // 2])

  done = launch(tmp_path / "run", tiny)
  assert f"Passing over step {tiny['train.steps']}" in done.stderr
  assert "checkpoints.damaged" in done.stderr
  assert "Resuming after step 56." in done.stdout  # a multiple of 7
  kept = tmp_path / "run" / "checkpoints.damaged" / str(tiny["train.steps"])
  assert kept.is_dir()
  assert_same_run(whole, tmp_path / "run")


def test_all_checkpoints_damaged(launch, tiny, whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  for file in (tmp_path / "run" / "checkpoints").rglob("d/*"):
    file.write_bytes(b"")
  before = _contents(tmp_path / "run")
  done = launch(tmp_path / "run", tiny, status=2)
  assert "Traceback" not in done.stderr
  paragraph = done.stderr[done.stderr.index("jaxpref: ") :]
  assert "No checkpoint in" in paragraph
  assert "Remove the folder" in " ".join(paragraph.split())
  assert _contents(tmp_path / "run") == before


def _kill_after(
  process: subprocess.Popen[str],
  workdir: pathlib.Path,
  step: int,
  seconds: float = 0.0,
) -> int:
  """Kills it so long after it wrote `step`; returns what it had written."""
  _wait_for(process, workdir, step)
  time.sleep(seconds)
  process.kill()
  process.communicate(timeout=60)
  return _written(workdir)


def _wait_for(
  process: subprocess.Popen[str], workdir: pathlib.Path, step: int
) -> None:
  deadline = time.monotonic() + 300
  while _written(workdir) < step and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)


def _written(workdir: pathlib.Path) -> int:
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return -1
  lines = path.read_text().split("\n")[:-1]  # without one cut off
  return json.loads(lines[-1])["step"] if lines else -1


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    str(each.relative_to(folder)): each.read_bytes()
    for each in folder.rglob("*")
    if each.is_file()
  }
