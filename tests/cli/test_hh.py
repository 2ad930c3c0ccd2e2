"""The real comparisons, two steps of them; tests/certify runs the epoch."""

import json
import math


def test_two_steps(launch, shared, tmp_path, metrics):
  settings = {
    "model.path": shared / "models" / "stories260K",
    "data.path": shared / "data" / "hh-harmless-test.jsonl.gz",
    "data.eval_holdout": 64,
    "data.max_length": 512,
    "data.truncate": "drop",
    "data.batch_size": 4,
    "train.steps": 2,
    "sample.num_prompts": 0,
  }
  done = launch(tmp_path / "run", settings)
  data = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
  assert data["rows"] == 2312
  refused = data["refused"]
  assert sorted(refused.values()) == [4, 5]
  assert sum("empty" in kind for kind in refused) == 1
  assert sum("prompts differ" in kind for kind in refused) == 1
  assert data["dropped"] == {"longer than max_length": 697}
  assert data["examples"] == 2312 - 9 - 697
  assert "697 longer than max_length" in done.stdout

  lines = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 9
  assert all(row["file"] == "hh-harmless-test.jsonl.gz" for row in rows)
  assert all(1 <= row["row"] <= 2312 and row["reason"] for row in rows)

  last = metrics(tmp_path / "run")[-1]
  share = last["eval/rewards/accuracies"]
  error = last["eval/rewards/accuracies_stderr"]
  assert error == math.sqrt(share * (1 - share) / 64)
  assert f"{share:.3f} ± {error:.3f}" in done.stdout
