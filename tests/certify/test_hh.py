"""An epoch of DPO on real comparisons."""

import json
import math
import os
import random
import shutil
import time

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.certify


@pytest.fixture(scope="module")
def settings(shared):
  return {
    "model.path": shared / "models" / "stories260K",
    "data.path": shared / "data" / "hh-harmless-test.jsonl.gz",
    "data.eval_holdout": 256,
    "data.max_length": 512,
    "data.truncate": "drop",
  }


@pytest.fixture(scope="module")
def run(launch, settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("hh") / "run"
  return workdir, launch(workdir, settings)


def test_rows(run, certify):
  workdir, done = run
  data = json.loads((workdir / "data.json").read_text())["train"]
  refused = dict(data["refused"])
  assert len((workdir / "rejected.jsonl").read_text().splitlines()) == 9
  certify(
    "HH, rows read and refused",
    f"{data['rows']:,}; {refused}".replace("|", "/"),
    "2,312; 5 prompts differ, 4 empty",
    data["rows"] == 2312 and sorted(refused.values()) == [4, 5],
  )
  dropped = data["dropped"]["longer than max_length"]
  certify("HH, dropped as too long", str(dropped), "697", dropped == 697)
  assert "697 longer than max_length" in done.stdout


def test_run_folder(run, certify):
  workdir, done = run
  names = {each.name for each in workdir.iterdir()}
  assert names >= {
    "config.json", "data.json", "metrics.jsonl", "checkpoints", "export",
    "samples", "rejected.jsonl", "report.html", "tensorboard",
  }  # fmt: skip
  lines = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  epoch = math.ceil((2312 - 9 - 697 - 256) / 64)
  assert [line["step"] for line in lines] == list(range(epoch + 1))
  assert all(x is not None for line in lines for x in line.values())
  assert abs(lines[1]["loss"] - math.log(2.0)) < 1e-6

  share = lines[-1]["eval/rewards/accuracies"]
  error = lines[-1]["eval/rewards/accuracies_stderr"]
  told = f"{share:.3f} ± {error:.3f}"
  certify(
    "HH, one epoch, held-out reward accuracy",
    f"{told} of 256",
    "reported with its standard error",
    told in done.stdout and error == math.sqrt(share * (1 - share) / 256),
  )


def test_killed(run, launch, settings, certify, tmp_path):
  whole, _ = run
  seed = int(os.environ.get("JAXPREF_SEED", random.randrange(10**6)))
  stop = random.Random(seed).randrange(2, 20)
  print(f"seed {seed}: killed after step {stop}")
  often = {**settings, "train.checkpoint_every": 4}
  process = launch.start(tmp_path / "run", often)
  path = tmp_path / "run" / "metrics.jsonl"
  while not path.exists() or path.read_text().count("\n") <= stop:
    assert process.poll() is None
    time.sleep(0.01)
  process.kill()
  process.communicate()
  launch(tmp_path / "run", often)

  steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
  assert steps == list(range(len(steps)))
  certify(
    "HH, killed at a random step and run again",
    f"{_differing(whole, tmp_path / 'run')} tensors of the export differ",
    "bit-identical",
    _differing(whole, tmp_path / "run") == 0,
  )
  shutil.rmtree(tmp_path / "run")


def _differing(one, other) -> int:
  with (
    safe_open(one / "export" / "model.safetensors", "numpy") as left,
    safe_open(other / "export" / "model.safetensors", "numpy") as right,
  ):
    assert set(left.keys()) == set(right.keys())
    return sum(
      left.get_tensor(name).tobytes() != right.get_tensor(name).tobytes()
      for name in left.keys()  # noqa: SIM118
    )
