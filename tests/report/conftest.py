"""A made-up run folder, as a DPO run leaves it."""

import json
import math

import pytest

from jaxpref import config


@pytest.fixture
def run_folder(tmp_path):
  folder = tmp_path / "kind endings"
  (folder / "samples").mkdir(parents=True)
  settings = config.build(
    {
      "loss": {"name": "dpo", "beta": 0.25},
      "model": {"path": "runs/pretrain/export", "arch": {"num_layers": 2}},
      "optimizer": {"learning_rate": 5e-5, "warmup_steps": 3},
      "data": {"path": "comparisons.jsonl", "eval_holdout": 64},
      "score": {"pattern": r"\b(?:glad|happy)\b"},
    }
  )
  write_json(folder / "config.json", config.to_dict(settings))
  write_lines(folder / "metrics.jsonl", metrics(steps=20))
  write_lines(folder / "samples" / "samples.jsonl", [
    {"prompt": f"Once {i}", "response": f" text <{i}> at {step}\n\nend",
     "seed": 0, "step": step, "scores": {"pattern": float(step > 0 or i < 1)}}
    for step in (0, 20) for i in range(6)
  ])  # fmt: skip
  write_json(folder / "data.json", {
    "train": {"comparisons": 1234567, "refused": {"empty response": 4}},
    "eval": {"comparisons": 64},
  })  # fmt: skip
  return folder


def metrics(steps):
  """Lines of metrics.jsonl: an evaluation before, then training steps."""
  lines = [{"step": 0, **held_out(0.0)}]
  for step in range(1, steps + 1):
    share = step / steps
    lines.append({
      "step": step, "loss": math.log(2) - 0.5 * share, "grad_norm": 2.0,
      "learning_rate": 5e-5 * (1 - share), "rewards/chosen": share,
      "rewards/rejected": -3 * share, "rewards/margins": 4 * share,
      "rewards/accuracies": 0.5 + share / 2, "rewards/ties": 0.0,
      "logps/chosen": -20.0, "logps/rejected": -20 - 9 * share,
      "logps/accuracies": 0.5 + share / 3, "pairs_per_second": 100.0,
      "tokens_per_second": 2000.0,
    })  # fmt: skip
  lines[-1] |= held_out(1.0)
  return lines


def held_out(share):
  return {
    "eval/loss": math.log(2) - 0.4 * share,
    "eval/rewards/accuracies": 0.96875 * share,
    "eval/rewards/accuracies_stderr": 0.02175 * share,
    "eval/rewards/ties": 1.0 - share,
    "eval/rewards/margins": 3.5 * share,
    "eval/logps/accuracies": 0.5 + 0.453 * share,
    "eval/logps/accuracies_stderr": 0.0625 - 0.036 * share,
  }


def write_json(path, value):
  path.write_text(json.dumps(value))


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
