"""Ten steps of every loss that TRL 1.16 trains with, beside its own curves.

The curves, and how they were made: tests/golden/make_trl_runs.py.
"""

import json
import pathlib

import numpy as np
import pytest

pytestmark = pytest.mark.certify

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_runs.json"
_RUNS = {run["name"]: run for run in json.loads(_GOLDEN.read_text())["runs"]}
_STEPS, _PAIRS = 10, 8


# The largest differences seen on CPU, relative: losses 3e-5, gradient norms
# 6e-5; 8e-5 and 7e-4 of `discopop`, which is steep (its tau is 0.05), and 1e-4
# of `aot_fast`, which learns ten times as fast. Another loss than the one asked
# for is 1 % off or more; but `aot` at the slower rate is plain DPO to 3e-6.
@pytest.mark.parametrize("name", [n for n, run in _RUNS.items() if run["loss"]])
def test_ten_steps_as_trl(name, launch, shared, certify, tmp_path):
  run = _RUNS[name]
  rows = _rows(run["data"], shared)
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = {
    "model.path": shared / "models" / "stories260K",
    "data.path": data,
    "data.batch_size": len(rows) // _STEPS,
    "data.shuffle": False,
    "train.steps": _STEPS,
    "optimizer.learning_rate": run["arguments"].get("learning_rate", 1e-4),
    "optimizer.schedule": "constant",
    "optimizer.grad_clip": 0.0,
    **{f"loss.{key}": value for key, value in run["loss"].items()},
  }
  launch(tmp_path / "run", settings)
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]

  def both(ours: str, theirs: str) -> tuple[np.ndarray, np.ndarray]:
    curve = np.array(run["curve"][theirs])
    return np.array([line[ours] for line in lines]), curve

  def apart(quantity: str) -> float:
    ours, theirs = both(quantity, quantity)
    return float(np.max(np.abs(ours - theirs) / np.abs(theirs)))

  loss, norm = apart("loss"), apart("grad_norm")
  certify(
    f"Ten steps beside TRL: {name}",
    f"losses {loss:.1e}, gradient norms {norm:.1e}, relative",
    "≤ 5e-3 and ≤ 1e-2",
    loss <= 5e-3 and norm <= 1e-2,
  )
  if run["loss"]["name"] == "kto":
    # The loss says little of it: with as many desirable as undesirable rows
    # its first order cancels, and another pairing moves the loss by 1e-4.
    ours, theirs = both("kl", "kl")
    kl = float(np.max(np.abs(ours - theirs)))
    certify(
      f"Ten steps beside TRL: {name}, KL estimate",
      f"{kl:.1e} nats",
      "≤ 5e-3 nats",
      kl <= 5e-3,
    )
  if any(run["curve"].get("nll_loss", [])):
    ours, theirs = both("nll", "nll_loss")
    nll = float(np.max(np.abs(ours - theirs)))
    certify(
      f"Ten steps beside TRL: {name}, NLL of the better response",
      f"{nll:.1e} nats a token",
      "≤ 1e-3 nats a token",
      nll <= 1e-3,
    )


def _rows(data: str, shared: pathlib.Path) -> list[dict]:
  oracle = json.loads((shared / "oracles" / "trl-dpo.json").read_text())
  pairs = oracle["rows"]
  if data == "pairs":
    return pairs
  sides = ("chosen", "rejected")
  blocks = [pairs[i : i + _PAIRS] for i in range(0, len(pairs), _PAIRS)]
  order = {
    "interleaved": [(pair, side) for pair in pairs for side in sides],
    "halves": [(p, side) for block in blocks for side in sides for p in block],
  }[data]
  return [
    {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
    for p, side in order
  ]
