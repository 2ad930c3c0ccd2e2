"""Reward models on axes that disagree, from rated rows to exported folders."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.models import huggingface
from jaxpref.models.build import bind, define
from jaxpref.ops.attention import padded_attention
from jaxpref.run import run

pytestmark = pytest.mark.usefixtures("own_cache")
AXES = ("joy", "gloom")


@pytest.fixture(scope="module")
def corpus(make_corpus):
  return make_corpus(80)


@pytest.fixture(scope="module")
def pairs(corpus):
  """Beginnings with a happy and a sad ending."""
  lines = (corpus / "comparisons.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture
def write(pairs, tmp_path):
  """write("a.jsonl", "joy") -> a file of rows that are rated on that axis."""

  def make(name, *axes):
    # Joy likes the happy ending, gloom the sad one.
    happy, sad = {"joy": 1.0, "gloom": 0.0}, {"joy": 0.0, "gloom": 1.0}
    rows = [
      {
        "prompt": pair["prompt"],
        "responses": [
          {"content": pair[side], "scores": {axis: x[axis] for axis in axes}}
          for side, x in (("chosen", happy), ("rejected", sad))
        ],
      }
      for pair in pairs
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)

  return make


@pytest.fixture
def build(tiny_run, corpus):
  """build(data={"path": ...}, ...) -> the config of a run of four steps."""
  own = {
    "model": {"reward_axes": AXES},
    "data": {"path": "", "batch_size": 8},
    "loss": {"name": "bradley_terry"},
  }
  return lambda **sections: tiny_run(corpus, own, sections)


@pytest.mark.parametrize("loss", ["bradley_terry", "reward_mse_axes"])
def test_each_axis_learns_its_own_order(
  build, write, corpus, pairs, tmp_path, capsys, loss
):
  settings = build(
    loss={"name": loss},
    data={"path": write("both.jsonl", *AXES), "eval_holdout": 32, "epochs": 4},
    train={"steps": 0, "eval_every": 9},
  )
  assert run(settings, tmp_path / "run")
  assert "Labels: 80 on 'joy', 80 on 'gloom'." in capsys.readouterr().out
  first, *_, last = read_metrics(tmp_path / "run")
  assert first["eval/rewards/ties/gloom"] == 1.0
  names = ("", *(f"/{axis}" for axis in AXES))
  for name in names:
    assert last[f"eval/rewards/accuracies{name}"] > 0.9
    assert 0.0 <= last[f"eval/rewards/accuracies{name}_stderr"] < 0.1
  # What transformers reads of the export, and what we do.
  texts = [p["prompt"] + p[side] for p in pairs for side in _SIDES]
  folder = tmp_path / "run" / "export"
  rewards = _theirs(folder, texts)
  np.testing.assert_allclose(_ours(folder, texts), rewards, atol=1e-5)
  happy, sad = rewards[::2], rewards[1::2]
  right = np.mean([happy > sad, happy < sad], axis=1)
  assert right[0, 0] > 0.9
  assert right[1, 1] > 0.9
  told = json.loads((folder / "config.json").read_text())
  assert told["id2label"] == {"0": "joy", "1": "gloom"}
  # A run that goes on from it has its axes.
  on = build(
    model={"path": str(folder), "arch": {}, "reward_axes": ()},
    data={"path": write("both.jsonl", *AXES)},
    train={"steps": 1},
  )
  assert run(on, tmp_path / "on")
  assert read_metrics(tmp_path / "on")[0]["rewards/accuracies/gloom"] > 0.7


def test_eight_devices_train_as_one_on_sources_of_an_axis_each(
  build, write, tmp_path
):
  sources = {axis: {"path": write(f"{axis}.jsonl", axis)} for axis in AXES}
  losses = []
  for number, mesh in enumerate(({"fsdp": 1}, {"fsdp": 4, "tensor": 2})):
    given = {"sources": sources, "rows_per_device": 8 if number == 0 else 2}
    settings = build(
      mesh=mesh, data=given, loss={"name": "bradley_terry_ties_axes"}
    )
    assert run(settings, tmp_path / str(number))
    lines = read_metrics(tmp_path / str(number))
    losses.append([x["loss"] for x in lines])
  np.testing.assert_allclose(*losses, atol=1e-4)
  assert np.ptp(losses) > 0.01
  assert {f"rewards/margins/{axis}" for axis in AXES} < lines[-1].keys()


def test_axes_that_do_not_go_together_with_the_data(build, write, tmp_path):
  data = {"path": write("both.jsonl", *AXES)}

  def refused(match, **given):
    with pytest.raises(UserError, match=match):
      run(build(**{"data": data, **given}), tmp_path / "run")
    assert not (tmp_path / "run").exists()

  axes = {"reward_axes": ("joy", "wit")}
  refused(r"No response has a score 'wit'; the data have 'joy', ", model=axes)
  refused(
    "'reward_bce' takes one label a response", loss={"name": "reward_bce"}
  )
  none = {"reward_axes": ()}
  loss = {"name": "reward_mse"}
  refused("has the axes 'reward' .*'joy', 'gloom'", model=none, loss=loss)


_SIDES = ("chosen", "rejected")


def _tokens(folder, texts):
  """The texts with BOS and EOS, padded on the right, and their lengths."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ends = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
  rows = [
    [*ends[0], *tokenizer(x, add_special_tokens=False)["input_ids"], *ends[1]]
    for x in texts
  ]
  told = json.loads((folder / "config.json").read_text())
  lengths = np.array(list(map(len, rows)))
  tokens = np.full((len(rows), lengths.max()), told["pad_token_id"])
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return tokens, lengths


def _theirs(folder, texts):
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  )
  tokens, lengths = _tokens(folder, texts)
  mask = np.arange(tokens.shape[1]) < lengths[:, None]
  with torch.no_grad():
    return (
      model(torch.tensor(tokens), attention_mask=torch.tensor(mask))
      .logits.numpy()
    )  # fmt: skip


def _ours(folder, texts):
  shape = huggingface.read_config(str(folder))
  definition = define(shape, dtype="float32", rewards=AXES)
  params = huggingface.load_params(str(folder), definition)
  tokens, lengths = _tokens(folder, texts)
  mask = np.arange(tokens.shape[1]) < lengths[:, None]
  position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  model = bind(definition, params)
  attend = padded_attention(jnp.asarray(mask))
  hidden, _ = model(jnp.asarray(tokens, jnp.int32), position, attend)
  return model.score(hidden)[np.arange(len(tokens)), lengths - 1]
