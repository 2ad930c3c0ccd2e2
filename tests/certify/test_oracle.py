"""Ten steps of DPO beside TRL 1.16, compiled as users have it."""

import json
import math

import numpy as np
import pytest

pytestmark = pytest.mark.certify


def test_trl(launch, shared, certify, tmp_path):
  oracle = json.loads((shared / "oracles" / "trl-dpo.json").read_text())
  data = tmp_path / "comparisons.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in oracle["rows"]))
  settings = {
    "model.path": shared / "models" / "stories260K",
    "data.path": data,
    "data.batch_size": 8,
    "data.shuffle": False,
    "train.steps": 10,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.grad_clip": 0.0,
  }
  launch(tmp_path / "run", settings)
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert len(lines) == len(oracle["curve"]) == 10

  def apart(name: str) -> np.ndarray:
    return np.array(
      [
        abs(ours[name] - theirs[name])
        for ours, theirs in zip(lines, oracle["curve"], strict=True)
      ]
    )

  first = abs(lines[0]["loss"] - math.log(2.0))
  certify("DPO, first loss − ln 2", f"{first:.1e}", "≤ 1e-6", first <= 1e-6)
  loss = apart("loss").max()
  certify("DPO, ten losses, against TRL", f"{loss:.1e}", "≤ 2e-3", loss <= 2e-3)
  norms = np.array([each["grad_norm"] for each in oracle["curve"]])
  norm = (apart("grad_norm") / norms).max()
  certify(
    "DPO, ten gradient norms, against TRL",
    f"{norm:.1e} relative",
    "≤ 1 %",
    norm <= 0.01,
  )
  logp = max(apart(f"logps/{side}").max() for side in ("chosen", "rejected"))
  certify(
    "DPO, log-probs of ten steps, against TRL",
    f"{logp:.1e} nats",
    "≤ 0.02 nats",
    logp <= 0.02,
  )
