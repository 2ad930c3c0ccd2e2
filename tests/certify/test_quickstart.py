"""configs/quickstart.py from beginning to end."""

import json
import time

import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.certify


def test_quickstart(launch, certify, tmp_path):
  """Killed half-way through the base training, then run to its end."""
  workdir, began = tmp_path / "run", time.monotonic()
  process = launch.start(workdir, config="configs/quickstart.py")
  base = workdir / "base" / "metrics.jsonl"
  # Of about 550 steps.
  while not base.exists() or base.read_text().count("\n") <= 250:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.kill()
  process.communicate()
  first = time.monotonic() - began

  began = time.monotonic()
  done = launch(workdir, config="configs/quickstart.py")
  seconds = first + time.monotonic() - began
  certify(
    "Quickstart, killed in the base training, then run to its end",
    f"{seconds:.0f} s, {done.stdout.count('Resuming after step')} resumed",
    "≤ 360 s, 1 resumed",
    seconds <= 360 and done.stdout.count("Resuming after step") == 1,
  )
  read = [json.loads(line) for line in base.read_text().splitlines()]
  assert [line["step"] for line in read] == list(range(read[-1]["step"] + 1))

  text = (workdir / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  before, after = lines[0], lines[-1]
  assert before["step"] == 0
  name = "eval/logps/accuracies"
  certify(
    "Quickstart, preferred ending likelier, before",
    f"{before[name]:.3f}",
    "0.4 to 0.6",
    0.4 <= before[name] <= 0.6,
  )
  certify(
    "Quickstart, preferred ending likelier, after",
    f"{after[name]:.3f}",
    "≥ 0.9",
    after[name] >= 0.9,
  )
  name = "eval/rewards/accuracies"
  certify(
    "Quickstart, held-out reward accuracy, after",
    f"{after[name]:.3f}",
    "≥ 0.95",
    after[name] >= 0.95,
  )
  name = "samples/pattern"
  certify(
    "Quickstart, samples with a preferred ending",
    f"{before[name]:.3f} before, {after[name]:.3f} after",
    "≥ 0.9 after",
    after[name] >= 0.9,
  )
  for label in ("preferred answer likelier", "samples that match the pattern"):
    assert label in done.stdout
  assert (workdir / "report.html").stat().st_size > 10_000
  assert load_file(workdir / "export" / "model.safetensors")
