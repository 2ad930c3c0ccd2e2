"""Runs that train a reward model, within this process."""

import json
import math
import shutil

import numpy as np
import peft
import pytest
from safetensors.numpy import load_file
import torch
import transformers

from jaxpref.errors import UserError
from jaxpref.fit.metrics import read_metrics
from jaxpref.run import run

# PEFT asks transformers for it by its older name.
pytestmark = [
  pytest.mark.usefixtures("own_cache"),
  pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
  ),
]


@pytest.fixture(scope="module")
def corpus(make_corpus):
  return make_corpus(80)


@pytest.fixture
def build(tiny_run, corpus):
  """build(model={...}, ...) -> the config of a run of four steps."""
  own = {
    "data": {"batch_size": 8},
    "loss": {"name": "bradley_terry"},
    "sample": {"num_prompts": 8},  # which no reward model answers
  }
  return lambda **sections: tiny_run(corpus, own, sections)


def test_it_learns_which_endings_are_preferred(build, tmp_path):
  settings = build(
    data={"eval_holdout": 32, "epochs": 3}, train={"steps": 0, "eval_every": 9}
  )
  assert run(settings, tmp_path / "run")
  first, *_, last = read_metrics(tmp_path / "run")
  assert first["eval/loss"] == pytest.approx(math.log(2.0), abs=1e-6)
  assert first["eval/rewards/ties"] == 1.0
  assert last["eval/rewards/accuracies"] > 0.9
  assert 0.0 <= last["eval/rewards/accuracies_stderr"] < 0.1
  # Nothing of a model that writes.
  assert not any("logps" in name for name in last)
  assert not (tmp_path / "run" / "samples").exists()
  page = (tmp_path / "run" / "report.html").read_text()
  assert "Reward accuracy" in page
  assert "Log-probability of answers" not in page


def test_eight_devices_train_as_one(build, tmp_path):
  losses = []
  for number, mesh in enumerate(({"fsdp": 1}, {"fsdp": 4, "tensor": 2})):
    assert run(build(mesh=mesh), tmp_path / str(number))
    losses.append([x["loss"] for x in read_metrics(tmp_path / str(number))])
  np.testing.assert_allclose(*losses, atol=1e-4)
  assert np.ptp(losses) > 0.01


def test_an_adapter_and_its_head(build, tmp_path):
  """PEFT gives the same rewards, and a run goes on from both."""
  assert run(build(), tmp_path / "first")
  base = shutil.copytree(tmp_path / "first" / "export", tmp_path / "base")
  model = {"path": str(base), "arch": {}, "lora": {"rank": 2}}
  workdir = tmp_path / "run"
  assert run(build(model=model), workdir)
  told = json.loads((workdir / "adapter" / "adapter_config.json").read_text())
  assert told["task_type"] == "SEQ_CLS"
  assert told["modules_to_save"] == ["score"]
  plain = _rewards(_classifier(base))
  laid = peft.PeftModel.from_pretrained(_classifier(base), workdir / "adapter")
  adapted = _rewards(laid)
  np.testing.assert_allclose(
    _rewards(_classifier(workdir / "export")), adapted, atol=1e-5
  )
  assert np.abs(adapted - plain).max() > 1e-2
  # The first loss of a run that goes on is the last model's.
  given = {**model, "lora": {"path": str(workdir / "adapter")}}
  same = {"data": {"shuffle": False}, "optimizer": {"learning_rate": 0.0}}
  assert run(build(model=given, **same), tmp_path / "on")
  merged = {"path": str(workdir / "export"), "arch": {}}
  assert run(build(model=merged, **same), tmp_path / "merged")
  on, whole = (read_metrics(tmp_path / name)[0] for name in ("on", "merged"))
  assert on["loss"] == pytest.approx(whole["loss"], abs=1e-6)
  # The language model's adapters have no head.
  tensors = load_file(workdir / "adapter" / "adapter_model.safetensors")
  assert tensors["base_model.model.score.weight"].shape == (1, 16)


def test_settings_that_do_not_go_together(build, tmp_path):
  axes = {"reward_axes": ("quality",)}
  with pytest.raises(UserError, match="leave out reward_axes"):
    run(build(model=axes, loss={"name": "sft"}), tmp_path / "run")
  axes = {"reward_axes": ("a", "b")}
  with pytest.raises(UserError, match=r"The data score nothing\. Give rows"):
    run(build(model=axes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def _classifier(folder):
  return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def _rewards(model):
  tokens = np.random.default_rng(0).integers(5, 900, (3, 20))
  with torch.no_grad():
    return model.train(False)(torch.tensor(tokens)).logits.numpy()
