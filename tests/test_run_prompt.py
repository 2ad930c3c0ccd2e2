"""Runs that train virtual tokens, within this process."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpref.errors import UserError
from jaxpref.fit import reference
from jaxpref.fit.metrics import read_metrics
from jaxpref.models.adapter import CONFIG, TENSORS
from jaxpref.models.prompt_file import NAME
from jaxpref.models.source import Source
from jaxpref.run import run

pytestmark = pytest.mark.usefixtures("own_cache")

PROMPT = {"length": 3}


@pytest.fixture(scope="module")
def corpus(make_corpus):
  return make_corpus(24)


@pytest.fixture
def build(tiny_run, tiny_arch, corpus):
  """build(prompt, model={...}, ...) -> the config of a run of four steps."""

  def make(prompt, **sections):
    arch = {**tiny_arch, "initializer_range": 0.25}
    own = {
      "model": {"arch": arch, "prompt": prompt},
      "optimizer": {"learning_rate": 0.1},
    }
    return tiny_run(corpus, own, sections)

  return make


def _losses(workdir):
  return [line["loss"] for line in read_metrics(workdir) if "loss" in line]


def _embeddings(workdir):
  return load_file(workdir / "adapter" / TENSORS)[NAME]


def test_modes_of_the_reference_agree(build, tmp_path, monkeypatch):
  """The base without virtual tokens, held once; the policy differs at once."""
  loaded, frozen = [], []
  load, open_reference = Source.load, reference.open_reference

  def counting(self, shardings):
    loaded.append("prompt" if self.base else "base")
    return load(self, shardings)

  def telling(*args):
    found = open_reference(*args)
    frozen.append((found[0], jax.tree.map(np.asarray, found[0])))
    return found

  monkeypatch.setattr(Source, "load", counting)
  monkeypatch.setattr("jaxpref.text_task.open_reference", telling)
  losses = {}
  for mode in ("base", "live", "cached"):
    workdir = tmp_path / mode
    assert run(build(PROMPT, reference={"mode": mode}), workdir)
    losses[mode] = _losses(workdir)
    assert loaded == ["base", "prompt"]
    ((now, before),) = frozen
    assert set(now) == {"base"}
    jax.tree.map(np.testing.assert_array_equal, now, before)
    loaded.clear()
    frozen.clear()
  assert losses["base"] == losses["live"]
  # Measured: 0.0.
  np.testing.assert_allclose(losses["cached"], losses["live"], atol=1e-5)
  assert abs(losses["live"][0] - math.log(2.0)) > 1e-3
  assert np.ptp(losses["live"]) > 0.03
  # What a run without virtual tokens has cached is the same reference.
  files = [*(tmp_path / "cache" / "reference").glob("*/*.safetensors")]
  before = {path: path.stat().st_mtime_ns for path in files}
  workdir = tmp_path / "full"
  assert run(build({}, reference={"mode": "cached"}), workdir)
  files = [*(tmp_path / "cache" / "reference").glob("*/*.safetensors")]
  assert {path: path.stat().st_mtime_ns for path in files} == before
  assert _losses(workdir)[0] == pytest.approx(math.log(2.0), abs=1e-5)


def test_log_probs_cached_as_training_goes(build, tmp_path):
  losses = []
  for fill in ("before", "during"):
    shutil.rmtree(tmp_path / "cache" / "reference", ignore_errors=True)
    given = {"mode": "cached", "fill": fill}
    assert run(build(PROMPT, reference=given), tmp_path / fill)
    losses.append(_losses(tmp_path / fill))
  # Measured: 0.0.
  np.testing.assert_allclose(*losses, atol=1e-5)


def test_killed_and_run_again(build, tmp_path, run_killed, capsys):
  """The same bits as never killed; the checkpoints hold no other weight."""
  settings = build(PROMPT, train={"steps": 4, "checkpoint_every": 2})
  assert run(settings, tmp_path / "whole")
  run_killed(settings, tmp_path / "again", step=4)
  assert not (tmp_path / "again" / "adapter").exists()
  capsys.readouterr()
  assert run(settings, tmp_path / "again")
  assert "Resuming after step 2." in capsys.readouterr().out
  assert _losses(tmp_path / "whole") == _losses(tmp_path / "again")
  one, other = (_embeddings(tmp_path / name) for name in ("whole", "again"))
  np.testing.assert_array_equal(one, other, strict=True)
  assert {one.shape, other.shape} == {(3, 16)}
  # No weights are exported, which could not hold virtual tokens.
  assert not (tmp_path / "whole" / "export").exists()


def test_eight_devices_train_as_one(build, tmp_path):
  losses, tensors = [], []
  for number, mesh in enumerate(({"fsdp": 1}, {"fsdp": 4, "tensor": 2})):
    workdir = tmp_path / str(number)
    given = {"mode": ("live", "cached")[number]}
    settings = build(
      PROMPT, mesh=mesh, optimizer={"eps": 1e-4}, reference=given
    )
    assert run(settings, workdir)
    losses.append(_losses(workdir))
    tensors.append(_embeddings(workdir))
  # Measured: 1e-6 and 7e-7.
  np.testing.assert_allclose(*losses, atol=1e-5)
  np.testing.assert_allclose(*tensors, atol=1e-4)


def test_to_go_on_from_virtual_tokens(build, tmp_path):
  """The reference is the model with them, or with mode=base without."""
  assert run(build(PROMPT), tmp_path / "first")
  given, losses = {"path": str(tmp_path / "first" / "adapter")}, {}
  for mode in ("live", "cached", "base"):
    settings = build(given, reference={"mode": mode})
    assert run(settings, tmp_path / mode)
    losses[mode] = _losses(tmp_path / mode)
    told = json.loads((tmp_path / mode / "adapter" / CONFIG).read_text())
    assert told["num_virtual_tokens"] == 3
  assert losses["live"][0] == pytest.approx(math.log(2.0), abs=1e-6)
  # Measured: 0.0.
  np.testing.assert_allclose(losses["cached"], losses["live"], atol=1e-5)
  assert abs(losses["base"][0] - math.log(2.0)) > 1e-2
  with pytest.raises(UserError, match="mode was 'live' and is 'base'"):
    run(build(given, reference={"mode": "base"}), tmp_path / "live")


def test_over_weights_of_a_folder(build, tmp_path):
  """With held-out data and samples, of a quantized base too."""
  # Little trained: large weights round far.
  assert run(build({}, optimizer={"learning_rate": 0.01}), tmp_path / "full")
  model = {"path": str(tmp_path / "full" / "export"), "arch": {}}
  losses = {}
  for kind in ("float32", "nf4"):
    settings = build(
      PROMPT,
      model={**model, "param_dtype": kind},
      data={"eval_holdout": 4},
      sample={"num_prompts": 2, "max_new_tokens": 4},
    )
    assert run(settings, tmp_path / kind)
    losses[kind] = _losses(tmp_path / kind)
    samples = (tmp_path / kind / "samples" / "samples.jsonl").read_text()
    assert len(samples.splitlines()) == 4
    told = json.loads((tmp_path / kind / "adapter" / CONFIG).read_text())
    assert told["base_model_name_or_path"] == model["path"]
    assert _embeddings(tmp_path / kind).dtype == np.float32
  first = [each[0] for each in losses.values()]
  assert 1e-4 < abs(first[0] - first[1]) < 0.3


@pytest.mark.parametrize("loss", ["kto", "sft"])
def test_losses_that_take_no_pairs(build, tmp_path, loss):
  assert run(build(PROMPT, loss={"name": loss}), tmp_path / "run")
  assert np.isfinite(_losses(tmp_path / "run")).all()
  assert np.ptp(_losses(tmp_path / "run")) > 1e-3


@pytest.mark.parametrize(
  ("prompt", "given", "told"),
  [
    (PROMPT, {"data": {"row_length": 58}}, r"tokens, 3 of them virtual\. Set"),
    (PROMPT, {"loss": {"name": "bradley_terry"}}, "trains a reward model"),
    ({"path": "nowhere"}, {}, r"there is no .*nowhere.adapter_config\.json"),
    (
      PROMPT,
      {"reference": {"mode": "base", "path": "x"}},
      "Set the mode to live or cached",
    ),
  ],
  ids=["rows", "rewards", "folder", "other model"],
)
def test_settings_that_do_not_go_together(build, tmp_path, prompt, given, told):
  settings = build(prompt, **given)
  with pytest.raises(UserError, match=told):
    run(settings, tmp_path / "run")
  assert not (tmp_path / "run").exists()
