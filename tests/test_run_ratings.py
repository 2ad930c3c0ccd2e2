"""Rated, ranked and tied rows from file to trained model."""

import json
import shutil

import pyarrow as pa
from pyarrow import parquet
import pytest

from jaxpref import config, launch
from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(make_corpus, tmp_path_factory):
  """The simulated corpus's, with a chat template."""
  folder = tmp_path_factory.mktemp("chat") / "tokenizer"
  shutil.copytree(make_corpus(4) / "tokenizer", folder)
  (folder / "chat_template.jinja").write_text(TEMPLATE)
  return str(folder)


@pytest.fixture
def start(tokenizer, own_cache, tmp_path):
  """start(path, "dpo", stages, **pair section) runs, up to 4 steps."""

  def made(path, loss, stages=("prepare",), **pair):
    arch = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tree = {
      "model": {"tokenizer": tokenizer, "arch": arch, "remat": ""},
      "data": {"path": str(path), "batch_size": 4, "max_length": 128},
      "loss": {"name": loss},
      "pair": pair,
      "optimizer": {"learning_rate": 3e-2, "schedule": "constant"},
      "train": {"steps": 4},
      "mesh": {"fsdp": 1},
      "sample": {"num_prompts": 0},
      "stages": stages,
    }
    assert run(config.build(tree), tmp_path / loss)

  return made


def _ultrafeedback(file):
  """Four prompts, each with four rated completions; ratings are texts."""
  completion = lambda n, score: {
    "response": f"Answer {n}.",
    "overall_score": score,
    "annotations": {"helpfulness": {"Rating": str(int(score) // 2)}},
  }
  scores = [(2.0, 9.0, 4.0, 7.0), (1.0, 8.0, 3.0, 8.0)] * 2
  rows = [
    {
      "instruction": f"Question {i}?",
      "completions": [completion(n, x) for n, x in enumerate(each)],
    }
    for i, each in enumerate(scores)
  ]
  parquet.write_table(pa.Table.from_pylist(rows), file)
  return file


def test_ultrafeedbacks_ratings_train_a_listwise_loss(start, tmp_path, capsys):
  file = _ultrafeedback(tmp_path / "ratings.parquet")
  start(file, "plackett_luce", ("fit",), rule="all_pairs")
  lines = read_metrics(tmp_path / "plackett_luce")
  out = capsys.readouterr().out
  assert "data.format is ultrafeedback (4 rows: column completions" in out
  # Six pairs of four, and of the lists with a tie five.
  assert "makes 22 comparisons of 4 rated examples" in out
  assert "2 ties are left out" in out
  # log 24 of a full ranking, log 18 with a tie for the best.
  assert lines[0]["loss"] == pytest.approx(3.0342, abs=1e-3)
  assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
  assert lines[-1]["rewards/accuracies"] > 0.7


def test_ratings_of_another_axis_make_pairs(start, tmp_path, capsys):
  file = _ultrafeedback(tmp_path / "ratings.parquet")
  start(file, "dpo", axis="helpfulness")
  assert "on the score 'helpfulness' makes 4" in capsys.readouterr().out


def test_helpsteer2s_ratings_train_a_reward_on_each_axis(
  tokenizer, own_cache, tmp_path
):
  """From the command line, with two of its axes."""
  axes = "helpfulness", "correctness", "coherence", "complexity", "verbosity"
  rated = lambda *scores: dict(zip(axes, scores, strict=True))
  rows = [
    {"prompt": f"Question {i}?", "response": f"Answer {n}.", **scores}
    for i in range(4)
    for n, scores in enumerate((rated(4, 4, 4, 1, 1), rated(2, 3, 4, 2, 3)))
  ]
  file = tmp_path / "rated.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  overrides = {
    "model.tokenizer": tokenizer, "model.arch.hidden_size": 16,
    "model.arch.num_hidden_layers": 1, "model.arch.num_attention_heads": 2,
    "model.reward_axes": "('verbosity','helpfulness')", "data.path": file,
    "data.max_length": 128, "data.batch_size": 4, "train.steps": 20,
    "optimizer.learning_rate": 3e-2, "mesh.fsdp": 1,
  }  # fmt: skip
  given = [f"--config.{key}={value}" for key, value in overrides.items()]
  workdir = f"--workdir={tmp_path / 'run'}"
  assert launch.main(["--config=configs/reward_axes.py", workdir, *given]) == 0
  first, *_, last = read_metrics(tmp_path / "run")
  # A head of zeros: (1 + 16) / 2 of one answer, (9 + 4) / 2 of the other.
  assert first["loss"] == pytest.approx(7.5)
  assert first["rewards/errors/verbosity"] == pytest.approx(2.0)
  assert first["rewards/errors/helpfulness"] == pytest.approx(3.0)
  assert last["loss"] < 1.5
  told = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
  assert told["id2label"] == {"0": "verbosity", "1": "helpfulness"}


def test_helpsteer3s_ties_are_no_chosen_and_rejected(start, tmp_path, capsys):
  """A tie trains nothing, unless it is kept."""
  judged = lambda i, overall: {
    "context": [{"role": "user", "content": f"Question {i}?"}],
    "response1": "Answer 1.",
    "response2": "Answer 2.",
    "overall_preference": overall,
    "individual_preference": [],
  }
  rows = [judged(i, overall) for i, overall in enumerate((-1, 0, 0, 0))]
  file = tmp_path / "judged.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  start(file, "dpo")
  out = capsys.readouterr().out
  assert "1 comparisons are the data's own; 3 ties are left out" in out
  assert "3 examples without comparison left out" in out
  start(file, "dpo", ties="keep")
  assert "left out" not in capsys.readouterr().out


def test_rows_without_scores_train_no_list(start, tmp_path):
  file = tmp_path / "texts.jsonl"
  file.write_text('{"text": "A story."}\n')
  with pytest.raises(UserError, match=r"no list of scored answers.*chosen"):
    start(file, "plackett_luce")
