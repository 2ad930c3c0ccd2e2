"""Runs that train an adapter, within this process."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref.errors import UserError
from jaxpref.fit import reference
from jaxpref.fit.metrics import read_metrics
from jaxpref.models.adapter import CONFIG, TENSORS
from jaxpref.models.source import Source
from jaxpref.run import run

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = {"rank": 2, "alpha": 8.0}


@pytest.fixture(scope="module")
def corpus(make_corpus):
  return make_corpus(24)


@pytest.fixture
def build(tiny_run, corpus):
  """build(lora, model={...}, ...) -> the config of a run of four steps."""

  def make(lora, **sections):
    own = {"model": {"lora": lora}, "optimizer": {"learning_rate": 3e-2}}
    return tiny_run(corpus, own, sections)

  return make


def _losses(workdir):
  return [line["loss"] for line in read_metrics(workdir)]


@pytest.fixture
def adapter(build, tmp_path):
  """The folder of a trained adapter."""
  assert run(build(LORA), tmp_path / "first")
  return tmp_path / "first" / "adapter"


def test_modes_of_the_reference_agree(build, tmp_path):
  losses = {}
  for mode in ("base", "live", "cached"):
    workdir = tmp_path / mode
    assert run(build(LORA, reference={"mode": mode}), workdir)
    losses[mode] = _losses(workdir)
  assert (tmp_path / "cache" / "reference").exists()
  assert losses["base"] == losses["live"]
  # Measured: 0.0.
  np.testing.assert_allclose(losses["cached"], losses["live"], atol=1e-5)
  assert losses["live"][0] == pytest.approx(math.log(2.0), abs=1e-6)
  assert np.ptp(losses["live"]) > 0.03


def test_eight_devices_train_as_one(build, tmp_path):
  losses, tensors = [], []
  for number, mesh in enumerate(({"fsdp": 1}, {"fsdp": 4, "tensor": 2})):
    workdir = tmp_path / str(number)
    assert run(build(LORA, mesh=mesh, optimizer={"eps": 1e-4}), workdir)
    losses.append(_losses(workdir))
    tensors.append(load_file(workdir / "adapter" / TENSORS))
  # Measured: 2e-6 and 7e-6.
  np.testing.assert_allclose(*losses, atol=1e-5)
  for name, tensor in tensors[0].items():
    np.testing.assert_allclose(tensor, tensors[1][name], atol=1e-4)
    assert np.ptp(tensor) > 1e-2


def test_the_base_is_held_once(build, tmp_path, monkeypatch):
  """Whatever the mode: the reference shares it."""
  loaded, roles = [], []
  load, open_reference = Source.load, reference.open_reference

  def counting(self, shardings):
    loaded.append("adapter" if self.base else "base")
    return load(self, shardings)

  def telling(*args):
    found = open_reference(*args)
    roles.append(set(found[0]))
    return found

  monkeypatch.setattr(Source, "load", counting)
  monkeypatch.setattr("jaxpref.text_task.open_reference", telling)
  for mode in ("base", "live", "cached"):
    assert run(build(LORA, reference={"mode": mode}), tmp_path / mode)
    assert loaded == ["base", "adapter"]
    assert roles == [{"base"}]
    loaded.clear()
    roles.clear()


def test_a_base_kept_in_bfloat16(build, tmp_path):
  model = {"param_dtype": "bfloat16"}
  assert run(build(LORA, model=model), tmp_path / "run")
  losses = _losses(tmp_path / "run")
  assert losses[0] == pytest.approx(math.log(2.0), abs=1e-6)
  assert np.ptp(losses) > 0.03
  weights = load_file(tmp_path / "run" / "export" / "model.safetensors")
  assert {str(x.dtype) for x in weights.values()} == {"bfloat16"}
  factors = load_file(tmp_path / "run" / "adapter" / TENSORS)
  assert {str(x.dtype) for x in factors.values()} == {"float32"}
  with pytest.raises(UserError, match="'bfloat16', and all weights train"):
    run(build({}, model=model), tmp_path / "full")
  assert not (tmp_path / "full").exists()


def test_a_quantized_base(build, tmp_path, capsys):
  """It is the reference too, and its run goes on."""
  model, losses = {"param_dtype": "nf4"}, {}
  for mode in ("base", "cached"):
    workdir = tmp_path / mode
    assert run(build(LORA, model=model, reference={"mode": mode}), workdir)
    losses[mode] = _losses(workdir)
  # Measured: 0.0.
  np.testing.assert_allclose(losses["cached"], losses["base"], atol=1e-5)
  assert losses["base"][0] == pytest.approx(math.log(2.0), abs=1e-6)
  assert np.ptp(losses["base"]) > 0.03
  capsys.readouterr()
  longer = build(LORA, model=model, train={"steps": 5})
  assert run(longer, tmp_path / "cached")
  assert "Resuming after step 4." in capsys.readouterr().out
  weights = load_file(tmp_path / "cached" / "export" / "model.safetensors")
  assert {str(x.dtype) for x in weights.values()} == {"bfloat16"}
  factors = load_file(tmp_path / "cached" / "adapter" / TENSORS)
  assert {str(x.dtype) for x in factors.values()} == {"float32"}


def test_to_go_on_from_an_adapter(build, adapter, tmp_path):
  """The reference is the model with it, or with mode=base without."""
  given = {"path": str(adapter)}
  losses = {}
  for mode in ("live", "cached", "base"):
    settings = build(given, reference={"mode": mode})
    assert run(settings, tmp_path / mode)
    losses[mode] = _losses(tmp_path / mode)
    told = json.loads((tmp_path / mode / "adapter" / CONFIG).read_text())
    assert (told["r"], told["lora_alpha"]) == (2, 8)
  assert losses["live"][0] == pytest.approx(math.log(2.0), abs=1e-6)
  # Measured: 0.0.
  np.testing.assert_allclose(losses["cached"], losses["live"], atol=1e-5)
  assert abs(losses["base"][0] - math.log(2.0)) > 1e-2
  # A rerun may compute the same values in another way, not others.
  assert run(build(given, reference={"mode": "cached"}), tmp_path / "live")
  with pytest.raises(UserError, match="mode was 'cached' and is 'base'"):
    run(build(given, reference={"mode": "base"}), tmp_path / "live")


def test_a_run_over_a_base_that_changed(build, tmp_path):
  assert run(build({}), tmp_path / "full")
  base = shutil.copytree(tmp_path / "full" / "export", tmp_path / "base")
  model = {"path": str(base), "arch": {}}
  assert run(build(LORA, model=model), tmp_path / "run")
  told = json.loads((tmp_path / "run" / "adapter" / CONFIG).read_text())
  assert told["base_model_name_or_path"] == str(base)
  assert run(build(LORA, model=model, train={"steps": 5}), tmp_path / "run")
  tensors = load_file(base / "model.safetensors")
  tensors["model.norm.weight"] *= 2
  save_file(tensors, base / "model.safetensors")
  with pytest.raises(UserError, match="an adapter over other weights"):
    run(build(LORA, model=model, train={"steps": 6}), tmp_path / "run")


@pytest.mark.parametrize(
  ("lora", "given", "told"),
  [
    ({}, {"mode": "base"}, r"there is no adapter\. Set .*lora\.rank"),
    (LORA, {"mode": "base", "path": "x"}, "Set the mode to live or cached"),
    ({**LORA, "targets": "query"}, {}, "matches no layer"),
    ({"path": "nowhere"}, {}, r"there is no .*nowhere.adapter_config\.json"),
  ],
  ids=["no adapter", "other model", "targets", "folder"],
)
def test_settings_that_do_not_go_together(build, tmp_path, lora, given, told):
  with pytest.raises(UserError, match=told):
    run(build(lora, reference=given), tmp_path / "run")
  assert not (tmp_path / "run").exists()
