"""Runs within this process; tests/cli has them as users start them."""

import dataclasses
import json
import math

import pytest

from jaxpref import config
from jaxpref.data import simulated
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("simulated") / "corpus"
  return simulated.write_corpus(
    folder, num_stories=50, num_comparisons=24, seed=0
  )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def build(corpus):
  """build({"data.seed": 1}) -> the config of a run of two steps."""

  def make(given=None) -> config.Config:
    arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tree = {
      "model": {
        "tokenizer": str(corpus / "tokenizer"),
        "arch": arch,
        "remat": "",
      },
      "data": {
        "path": str(corpus / "comparisons.jsonl"),
        "batch_size": 4,
        "max_length": 128,
        "row_length": 512,
      },
      "loss": {"name": "dpo", "beta": 0.1},
      "train": {"steps": 2},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
    }
    for key, value in (given or {}).items():
      section, name = key.split(".")
      tree.setdefault(section, {})[name] = value
    return config.build(tree)

  return make


def test_prepare_alone_writes_no_run(build, tmp_path, capsys):
  settings = dataclasses.replace(build(), stages=("prepare",))
  assert run(settings, tmp_path / "run")
  assert "24 rows" in capsys.readouterr().out
  assert not (tmp_path / "run").exists()
  assert list((tmp_path / "cache" / "prepared").iterdir())


def test_finished_run_is_not_trained_again(build, tmp_path, capsys):
  workdir = tmp_path / "run"
  assert run(build(), workdir)
  lines = read_metrics(workdir)
  capsys.readouterr()
  assert run(build(), workdir)
  assert "Resuming after step 2." in capsys.readouterr().out
  assert read_metrics(workdir) == lines


def test_held_out_file(build, corpus, tmp_path):
  settings = build({"data.eval_path": str(corpus / "comparisons.jsonl")})
  assert run(settings, tmp_path / "run")
  first, *_, last = read_metrics(tmp_path / "run")
  assert first["step"] == 0
  assert abs(first["eval/rewards/margins"]) < 1e-5  # rounding
  assert "eval/rewards/accuracies_stderr" in last
  data = json.loads((tmp_path / "run" / "data.json").read_text())
  assert data["eval"]["examples"] == 24


@pytest.mark.parametrize("mode", ["live", "cached"])
def test_modes_of_the_reference_agree(build, tmp_path, mode):
  settings = build({"reference.mode": mode})
  assert run(settings, tmp_path / "run")
  cache = tmp_path / "cache" / "reference"
  assert cache.exists() == (mode == "cached")
  first, second = read_metrics(tmp_path / "run")
  # The policy is the reference, but for rounding: 3e-8 and 2e-6 were seen.
  assert first["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert abs(first["rewards/margins"]) < 1e-5
  assert second["step"] == 2


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"model.tokenizer": ""}, "config.model.path is empty"),
    ({"data.path": ""}, "config.data.path is empty"),
    ({"reference.mode": "none"}, "config.reference.mode is 'none'"),
    (
      {"data.eval_path": "x.jsonl", "data.eval_holdout": 2},
      "both set; use one",
    ),
    ({"data.row_length": 16}, "config.data.row_length is 16"),
  ],
  ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_settings_that_do_not_go_together(build, tmp_path, given, told):
  with pytest.raises(UserError, match=told):
    run(build(given), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_tokenizer_of_another_model(build, tmp_path):
  settings = build()
  arch = {**settings.model.arch, "vocab_size": 16}
  settings = dataclasses.replace(
    settings, model=dataclasses.replace(settings.model, arch=arch)
  )
  with pytest.raises(UserError, match="vocabulary has 16 entries"):
    run(settings, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_workdir_that_is_a_file(build, tmp_path):
  (tmp_path / "run").touch()
  with pytest.raises(UserError, match="is a file"):
    run(build(), tmp_path / "run")
