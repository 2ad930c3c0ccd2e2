"""Runs within this process; tests/cli has them as users start them."""

import dataclasses
import json
import math
import os
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.cached_reference import CachedReference
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def corpus(make_corpus):
  return make_corpus(24)


@pytest.fixture
def build(corpus, tiny_run):
  """build({"data.seed": 1}) -> the config of a run of two steps."""

  def make(given=None) -> config.Config:
    arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {
      "model": {"arch": arch},
      "loss": {"name": "dpo", "beta": 0.1},
      "optimizer": {"learning_rate": 1e-6, "schedule": "linear"},
      "train": {"steps": 2},
    }
    for key, value in (given or {}).items():
      section, name = key.split(".")
      own.setdefault(section, {})[name] = value
    return tiny_run(corpus, own)

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


FILLED = {
  "reference.mode": "cached",
  "train.steps": 9,  # an epoch has 6
  "train.checkpoint_every": 2,
  "optimizer.learning_rate": 1e-2,
}


def _told(workdir):
  return [
    {
      key: x
      for key, x in line.items()
      if "_per_second" not in key and key != "data/wait_share"
    }
    for line in read_metrics(workdir)
  ]


def test_a_reference_filled_while_training(build, tmp_path, monkeypatch):
  """Equal to one computed before; killed in the first epoch, and run again."""
  assert run(build(FILLED | {"data.shuffle": False}), tmp_path / "before")
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path / "cache 2"))
  settings = build(FILLED | {"data.shuffle": False, "reference.fill": "during"})
  assert run(settings, tmp_path / "during")
  # The same program in the same batches: the same bits.
  assert _told(tmp_path / "during") == _told(tmp_path / "before")
  # A second run has no pass to make.
  store = sorted((tmp_path / "cache 2" / "reference").rglob("*.*"))
  with monkeypatch.context() as patch:
    patch.setattr(CachedReference, "_take", None)
    assert run(settings, tmp_path / "again")
  assert _told(tmp_path / "again") == _told(tmp_path / "before")
  assert sorted((tmp_path / "cache 2" / "reference").rglob("*.*")) == store


def test_killed_while_it_fills(build, run_killed, tmp_path, monkeypatch):
  settings = build(FILLED | {"reference.fill": "during"})
  with monkeypatch.context() as patch:
    patch.setenv("JAXPREF_CACHE", str(tmp_path / "cache 2"))
    assert run(settings, tmp_path / "whole")

  run_killed(settings, tmp_path / "run", step=5)
  # Two steps of four pairs were there with the checkpoint, or four.
  stored = sum(
    len(load_file(file)["key"])
    for file in (tmp_path / "cache" / "reference").rglob("*.safetensors")
  )
  assert stored in (16, 32)
  assert run(settings, tmp_path / "run")
  assert _told(tmp_path / "run") == _told(tmp_path / "whole")


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


def test_examples_without_comparison_are_left_out(
  build, corpus, tmp_path, capsys
):
  rows = (corpus / "comparisons.jsonl").read_text().splitlines()[:8]
  rows += (corpus / "stories.jsonl").read_text().splitlines()[:6]
  path = tmp_path / "mixed.jsonl"
  path.write_text("".join(row + "\n" for row in rows))
  assert run(build({"data.path": str(path)}), tmp_path / "run")
  assert "6 examples without comparison left out" in capsys.readouterr().out
  assert len(read_metrics(tmp_path / "run")) == 2


def test_empty_rows_are_told(build, tmp_path, capsys):
  settings = build({"data.rows_per_device": 6, "train.steps": 1})
  assert run(settings, tmp_path / "few")
  told = " ".join(capsys.readouterr().out.split())
  assert "Warning: 2 of the 6 rows of a step hold nothing" in told
  assert "A config.data.batch_size of 6 fills them" in told
  (line,) = read_metrics(tmp_path / "few")
  assert line["waste/idle_rows"] == pytest.approx(2 / 6)
  assert 0 < line["waste/padding"] < 4 / 6
  assert line["waste/repeated_prompts"] == 0
  settings = build({"data.rows_per_device": 6, "data.batch_size": 6})
  assert run(settings, tmp_path / "enough")
  assert "hold nothing" not in capsys.readouterr().out
  assert read_metrics(tmp_path / "enough")[-1]["waste/idle_rows"] == 0


@pytest.mark.parametrize(
  ("loss", "kinds", "told"),
  [
    ("dpo", (True, False), r"holds no comparison\. .*loss\.name=kto"),
    ("kto", (None,), r"holds no label\. .* `completion` and `label`"),
    ("sft", (False,), r"no answer to imitate\. All are labelled undesirable"),
  ],
)
def test_data_of_another_kind(build, corpus, tmp_path, loss, kinds, told):
  path = _label(corpus, tmp_path, kinds)
  settings = build({"data.path": path, "loss.name": loss})
  if loss == "sft":
    settings = dataclasses.replace(settings, loss=config.Loss(name="sft"))
  with pytest.raises(UserError, match=told):
    run(settings, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_labels_are_counted(build, corpus, tmp_path, capsys):
  path = _label(corpus, tmp_path, (True, False, None, True))
  settings = build({"data.path": path, "loss.name": "kto", "train.steps": 1})
  assert run(settings, tmp_path / "run")
  told = capsys.readouterr().out
  assert "4 examples without label left out" in told
  assert "8 desirable and 4 undesirable responses." in told
  (line,) = read_metrics(tmp_path / "run")
  assert line["loss"] == pytest.approx(0.5, abs=1e-6)
  assert "rewards/margins" in line
  assert "rewards/accuracies" not in line


def _label(corpus, tmp_path, kinds):
  """A file of sixteen answers, labelled with these in turn."""
  rows = (corpus / "comparisons.jsonl").read_text().splitlines()[:16]
  path = tmp_path / "labelled.jsonl"
  with path.open("w") as file:
    for i, row in enumerate(map(json.loads, rows)):
      new = {"prompt": row["prompt"], "completion": row["chosen"]}
      label = {"label": kinds[i % len(kinds)]}
      file.write(json.dumps({**new, **label}) + "\n")
  return str(path)


@pytest.mark.parametrize(
  "options",
  [{"label_smoothing": 0.7}, {"name": "ipo", "beta": 0.0}],
  ids=["out of range", "division by zero"],
)
def test_loss_that_does_not_take_its_options(build, tmp_path, options):
  given = {f"loss.{name}": value for name, value in options.items()}
  with pytest.raises(UserError, match="does not take these values"):
    run(build(given), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_run_on_data_that_changed(build, corpus, tmp_path):
  path = tmp_path / "own.jsonl"
  rows = (corpus / "comparisons.jsonl").read_text().splitlines()
  path.write_text("".join(row + "\n" for row in rows))
  settings = build({"data.path": str(path)})
  assert run(settings, tmp_path / "run")
  path.write_text("".join(row + "\n" for row in reversed(rows)))
  with pytest.raises(UserError, match="holds a run on other data"):
    run(settings, tmp_path / "run")


def test_settings_may_change_until_there_is_a_checkpoint(build, tmp_path):
  workdir = tmp_path / "run"
  with pytest.raises(UserError, match="Start again in another --workdir"):
    run(build({"optimizer.learning_rate": math.inf}), workdir)
  # The first step's numbers were finite, the parameters after it were not.
  shutil.rmtree(workdir / "checkpoints")
  assert run(build(), workdir)
  with pytest.raises(UserError, match=r"config\.data\.seed was 0 and is 1"):
    run(build({"data.seed": 1}), workdir)


def test_fewer_steps_than_were_made(build, tmp_path):
  assert run(build(), tmp_path / "run")
  with pytest.raises(UserError, match="holds a run of 2 steps"):
    run(build({"train.steps": 1}), tmp_path / "run")


def test_error_keeps_the_checkpoint_before_it(build, tmp_path):
  """What was begun to be saved is whole once the error is out."""
  workdir = tmp_path / "run"
  given = {
    "optimizer.learning_rate": math.inf,
    "train.checkpoint_every": 1,
  }
  with pytest.raises(UserError, match="at step 2"):
    run(build(given), workdir)
  assert [each.name for each in (workdir / "checkpoints").iterdir()] == ["1"]


def test_a_guard_stops_what_gets_worse_at_both(build, tmp_path, monkeypatch):
  """A far too large step makes everything less likely."""
  monkeypatch.setattr("jaxpref.fit.guard.PATIENCE", 1)
  given = {"optimizer.learning_rate": 1.0, "optimizer.schedule": "constant"}
  settings = build(given | {"train.guard": "stop", "train.steps": 4})
  with pytest.raises(UserError, match="At step 2 both sides"):
    run(settings, tmp_path / "run")
  lines = read_metrics(tmp_path / "run")
  assert [line["step"] for line in lines] == [1, 2]
  assert lines[-1]["rewards/both_fell"] > 0.5
  assert run(build(given | {"train.guard": "warn", "train.steps": 4}),
             tmp_path / "run")  # fmt: skip
  assert len(read_metrics(tmp_path / "run")) == 4


def test_same_run_from_another_folder(build, corpus, tmp_path, monkeypatch):
  monkeypatch.chdir(corpus)
  settings = build({"data.path": "comparisons.jsonl"})
  assert run(settings, tmp_path / "run")
  monkeypatch.chdir(tmp_path)
  path = os.path.relpath(corpus / "comparisons.jsonl")
  assert run(build({"data.path": path}), pathlib.Path("run"))


def test_workdir_of_something_else(build, tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  with pytest.raises(UserError, match=r"config\.json that is not of a run"):
    run(build(), tmp_path)
