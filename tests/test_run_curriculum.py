"""A curriculum's stages within this process, on simulated ratings."""

import json
import math
import re

import pytest

from jaxpref import config
from jaxpref.data.curriculum import go_on_from, stage_settings
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

STAGES = ("stage_000", "stage_001")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def build(make_corpus, tmp_path):
  """build({"refresh": False}) -> the config of two stages of two steps."""
  corpus = make_corpus(8)
  text = (corpus / "comparisons.jsonl").read_text()
  rows = map(json.loads, text.splitlines())
  rated = tmp_path / "rated.jsonl"
  with rated.open("w") as file:
    for row in rows:
      texts = [row["chosen"], row["rejected"], row["rejected"] + " The end."]
      answers = [
        {"content": text, "scores": {"overall": score}}
        for text, score in zip(texts, (5, 3, 1), strict=True)
      ]
      row = {"prompt": row["prompt"], "responses": answers}
      file.write(json.dumps(row) + "\n")
  arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

  def make(curriculum=None, loss="dpo") -> config.Config:
    given = {"criterion": "score_gap", "stages": 2, "per_prompt": True}
    return config.build(
      {
        "model": {
          "tokenizer": str(corpus / "tokenizer"),
          "arch": arch,
          "remat": "",
        },
        "pair": {"rule": "best_rest"},
        "data": {
          "path": str(rated),
          "curriculum": given | (curriculum or {}),
          "batch_size": 4,
          "max_length": 128,
          "row_length": 512,
        },
        "loss": {"name": loss},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"checkpoint_every": 1},
        "mesh": {"fsdp": 1},
        "sample": {"num_prompts": 0},
      }
    )

  return make


def _losses(workdir):
  return [
    (line["step"], line["loss"])
    for stage in STAGES
    for line in read_metrics(workdir / stage)
  ]


def test_stages(build, run_killed, tmp_path, capsys):
  """Each from ln 2; killed in the second, and run again."""
  settings, whole = build(), tmp_path / "whole"
  assert run(settings, whole)
  said = capsys.readouterr().out
  for stage, gap in enumerate((-4, -2)):
    told = f"Stage {stage} of 2: 8 of 16 comparisons, score_gap from {gap} to"
    assert told in said
  losses = _losses(whole)
  assert [step for step, _ in losses] == [1, 2, 1, 2]
  # The policy is the reference, but for rounding: 3e-8 was seen.
  for _, loss in losses[::2]:
    assert loss == pytest.approx(math.log(2.0), abs=1e-6)

  run_killed(settings, tmp_path / "run", step=2, nth=2)
  assert run(settings, tmp_path / "run")
  told = capsys.readouterr().out
  assert "Resuming after step 2." in told  # of the first stage: it was done
  assert "Resuming after step 1." in told
  assert _losses(tmp_path / "run") == losses

  # Compared with any other model it would not begin there.
  second = go_on_from(stage_settings(settings, 1), whole / STAGES[0] / "export")
  tree = config.to_dict(second)
  tree["reference"]["path"] = str(whole / STAGES[1] / "export")
  assert run(config.build(tree), tmp_path / "stale")
  first, _ = read_metrics(tmp_path / "stale")
  assert abs(first["loss"] - math.log(2.0)) > 1e-3


def test_a_curriculum_by_log_probs(build, tmp_path, capsys):
  """Of the model before training, in the second stage as in the first."""
  tree = config.to_dict(build(loss="sft"))
  del tree["data"]["curriculum"], tree["pair"]
  assert run(config.build(tree), tmp_path / "base")
  base = str(tmp_path / "base/export")
  tree = config.to_dict(build())
  tree["data"]["curriculum"] |= {"criterion": "logp_gap", "per_prompt": False}
  tree["model"] |= {"path": base, "arch": {}}
  tree["data"]["batch_size"] = 8
  settings = config.build(tree)

  def ranges(name, settings):
    """Least and most of each stage that is run, as it is told."""
    capsys.readouterr()
    assert run(settings, tmp_path / name)
    said = capsys.readouterr().out
    found = re.findall(r"Stage . of 2: .* from (.*) to (.*) \(", said)
    return [[float(x) for x in each] for each in found]

  first, second = ranges("run", settings)
  assert first[0] < first[1] <= second[0] < second[1]
  # The first step has the log-probs that cut its stage.
  line, *_ = read_metrics(tmp_path / "run" / STAGES[0])
  gap = line["logps/rejected"] - line["logps/chosen"]
  assert first[0] <= gap <= first[1]
  # The second is that of the base, not of what the first has trained.
  assert ranges("alone", stage_settings(settings, 1)) == [second]
  tree["model"]["path"] = str(tmp_path / "run" / STAGES[0] / "export")
  other = stage_settings(config.build(tree), 1)
  assert ranges("other", other) != [second]
  again = go_on_from(stage_settings(settings, 1), tmp_path / "other")
  assert again.data.curriculum.model == base


def test_log_probs_that_there_are_none_of(build, tmp_path):
  asked = {"criterion": "logp_gap"}
  with pytest.raises(UserError, match="random weights are kept nowhere"):
    build(asked)
  with pytest.raises(UserError, match="only a language model gives"):
    run(build(asked | {"stages": 1}, loss="bradley_terry"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  tree = {"model": {"family": "sdxl"}, "data": {"curriculum": asked}}
  with pytest.raises(UserError, match="only a language model gives"):
    config.build(tree)
  with pytest.raises(UserError, match="asks no model"):
    build({"model": "some"})


def test_a_loss_without_comparisons(build, tmp_path):
  with pytest.raises(UserError, match="orders comparisons, and the loss 'sft'"):
    run(build(loss="sft"), tmp_path / "run")
  assert not (tmp_path / "run").exists()
