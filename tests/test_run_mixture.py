"""Runs on several sources at once, within this process."""

import json

import pytest

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

SIZES = {"first": 18, "second": 6}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def build(make_corpus, tmp_path):
  """build({"second": {"weight": 3}}) -> the config of a run of an epoch."""
  corpus = make_corpus(24)
  lines = (corpus / "comparisons.jsonl").read_text().splitlines()
  for name, size in SIZES.items():
    rows, lines = lines[:size], lines[size:]
    text = "".join(row + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(text)
  arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

  def make(given=None, **data) -> config.Config:
    sources = {
      name: {"path": str(tmp_path / f"{name}.jsonl"), "weight": 1}
      | (given or {}).get(name, {})
      for name in SIZES
    }
    tree = {
      "model": {
        "tokenizer": str(corpus / "tokenizer"),
        "arch": arch,
        "remat": "",
      },
      "data": {
        "sources": sources,
        "batch_size": 4,
        "max_length": 128,
        "row_length": 512,
        **data,
      },
      "loss": {"name": "dpo", "beta": 0.1},
      "optimizer": {"learning_rate": 1e-2},
      "train": {"checkpoint_every": 2},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
    }
    return config.build(tree)

  return make


def test_killed_and_resumed(build, run_killed, tmp_path, capsys):
  settings = build(eval_holdout=4)
  assert run(settings, tmp_path / "whole")
  said = capsys.readouterr().out
  assert "Source second:\nsecond.jsonl: 6 rows" in said
  data = json.loads((tmp_path / "whole" / "data.json").read_text())
  assert data["eval"] == {"examples": 4}
  sources = data["train"]["sources"]
  assert {name: sources[name]["rows"] for name in SIZES} == SIZES
  told = read_metrics(tmp_path / "whole")
  # Every step has two of each, until the larger one is through.
  for line in told[1:-1]:
    for name in SIZES:
      assert line[f"examples/{name}"] == 2 * line["step"]

  run_killed(settings, tmp_path / "run", step=4)
  assert run(settings, tmp_path / "run")
  assert "Resuming after step 2." in capsys.readouterr().out
  again = read_metrics(tmp_path / "run")
  for name in ("loss", "grad_norm", "examples/first", "examples/second"):
    assert [x.get(name) for x in again] == [x.get(name) for x in told]


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"path": "/nowhere"}, r"sources\.second: The data path '/nowhere' does"),
    ({"format": "hh"}, r"sources\.second: .*6 of 6 rows are refused"),
    ({"weight": 9}, r"sources\.second has 6 examples .* puts 17 into a step"),
  ],
  ids=["path", "format", "weight"],
)
def test_the_source_is_named(build, tmp_path, given, told):
  with pytest.raises(UserError, match=told):
    run(build({"second": given}, batch_size=18), tmp_path / "run")
  assert not (tmp_path / "run").exists()
