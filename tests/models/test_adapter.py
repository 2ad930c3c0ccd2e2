"""Adapters there and back, beside the library PEFT."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.models.adapter import (
  CONFIG,
  TENSORS,
  load_adapter,
  save_adapter,
  with_adapter,
)
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.huggingface import (
  load_params,
  read_config,
  save_pretrained,
)
from jaxpref.models.lora import overlay
from jaxpref.models.source import open_source, resolve_model
from jaxpref.ops.attention import padded_attention

# PEFT asks transformers for it by its older name.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

TOKENS = np.random.default_rng(0).integers(3, 90, (3, 40))


@pytest.fixture
def base(make_torch, folder_of):
  """A folder of a tiny random Llama with every bias."""
  return folder_of(make_torch(attention_bias=True, mlp_bias=True))


def _definition(base, **lora):
  lora = config.Lora(**lora)
  return define(read_config(base), dtype="float32", lora=lora)


def _trained(definition, shardings=None):
  """Factors of which both differ from zero, as after training."""
  factors = init_params(definition, jax.random.key(1), shardings)
  rng = np.random.default_rng(1)
  noise = lambda x: x + 0.1 * jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  return jax.tree.map(noise, factors)


def _logits(base, definition, factors):
  params = overlay(load_params(base, definition.base), factors)
  position = jnp.broadcast_to(jnp.arange(40, dtype=jnp.int32), (3, 40))

  @jax.jit
  def forward(params):
    model = bind(definition, params)
    attend = padded_attention(jnp.ones((3, 40), bool))
    hidden, _ = model(jnp.asarray(TOKENS, jnp.int32), position, attend)
    return hidden @ model.head_kernel()

  return np.asarray(forward(params))


def _torch_logits(base, adapter=None):
  model = transformers.LlamaForCausalLM.from_pretrained(base)
  if adapter is not None:
    model = peft.PeftModel.from_pretrained(model, adapter).train(False)
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


LORAS = {
  "all": {"rank": 4, "alpha": 8.0},
  "rs": {"rank": 4, "alpha": 3.5, "rs": True},
  "some": {"rank": 2, "targets": "q_proj|down_proj", "dropout": 0.3},
  "attention": {"rank": 2, "targets": r"self_attn\..*"},
}


@pytest.mark.parametrize("name", LORAS)
def test_exports_load_in_peft_and_in_transformers(base, tmp_path, name):
  definition = _definition(base, **LORAS[name])
  factors = _trained(definition)
  ours = _logits(base, definition, factors)
  save_adapter(tmp_path / "adapter", definition, factors, str(base))
  save_pretrained(
    tmp_path / "merged", definition, overlay(_params(base), factors)
  )
  adapted = _torch_logits(base, tmp_path / "adapter")
  # Measured: 2e-6 and 3e-6, of logits of up to 5.
  np.testing.assert_allclose(adapted, ours, atol=3e-5)
  merged = _torch_logits(tmp_path / "merged")
  np.testing.assert_allclose(merged, ours, atol=3e-5)
  assert np.abs(ours - _torch_logits(base)).max() > 0.3
  # An alpha that is wrong by 1 % would be seen.
  path = tmp_path / "adapter" / CONFIG
  told = json.loads(path.read_text())
  path.write_text(json.dumps({**told, "lora_alpha": 1.01 * told["lora_alpha"]}))
  wrong = _torch_logits(base, tmp_path / "adapter")
  assert np.abs(wrong - ours).max() > 1e-3


@pytest.mark.parametrize("rs", [False, True])
def test_an_adapter_of_peft_is_read(base, tmp_path, rs):
  _save_with_peft(base, tmp_path / "peft", use_rslora=rs)
  lora = with_adapter(config.Lora(path=str(tmp_path / "peft"), dropout=0.1))
  assert lora == config.Lora(
    path=str(tmp_path / "peft"),
    rank=3,
    alpha=6.0,
    rs=rs,
    targets="mlp.up_proj|self_attn.q_proj",
    dropout=0.1,  # this run's own
  )
  definition = define(read_config(base), dtype="float32", lora=lora)
  factors = load_adapter(lora.path, definition)
  ours = _logits(base, definition, factors)
  # Measured: 2e-6.
  expected = _torch_logits(base, tmp_path / "peft")
  np.testing.assert_allclose(ours, expected, atol=3e-5)
  assert np.abs(ours - _torch_logits(base)).max() > 0.3
  # And comes back bit-equal.
  save_adapter(tmp_path / "again", definition, factors)
  before, after = (
    safetensors.numpy.load_file(tmp_path / name / TENSORS)
    for name in ("peft", "again")
  )
  assert before.keys() == after.keys()
  for key, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[key], strict=True)


def test_shards_are_read_and_gathered(base, tmp_path):
  mesh = sharding.make_mesh(1, 4, 2)
  definition = _definition(base, rank=4)
  alone = _trained(definition)
  save_adapter(tmp_path / "alone", definition, alone)
  shardings = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  factors = load_adapter(tmp_path / "alone", definition, shardings)
  q = factors["layers"]["attention"]["q"]
  assert tuple(q["lora_a"].sharding.spec) == (None, "fsdp", None)
  jax.tree.map(np.testing.assert_array_equal, factors, alone)
  save_adapter(tmp_path / "sharded", definition, factors)
  one, other = (
    (tmp_path / name / TENSORS).read_bytes() for name in ("alone", "sharded")
  )
  assert one == other


def test_a_base_kept_in_bfloat16(base, tmp_path):
  """Its merged export is rounded, its adapter is not."""
  lora = config.Lora(rank=4)
  definition = define(
    read_config(base), dtype="float32", param_dtype="bfloat16", lora=lora
  )
  params = overlay(load_params(base, definition.base), _trained(definition))
  save_pretrained(tmp_path / "merged", definition, params)
  told = json.loads((tmp_path / "merged" / "config.json").read_text())
  assert told["dtype"] == "bfloat16"
  model = transformers.LlamaForCausalLM.from_pretrained(
    tmp_path / "merged", dtype=torch.float32
  )
  with torch.no_grad():
    merged = model(torch.tensor(TOKENS)).logits.numpy()
  ours = _logits(base, definition, _trained(definition))
  # Measured: 0.03, of logits of up to 5; a bfloat16 has 8 bits.
  np.testing.assert_allclose(merged, ours, atol=0.2)
  save_adapter(tmp_path / "adapter", definition, _trained(definition))
  tensors = safetensors.numpy.load_file(tmp_path / "adapter" / TENSORS)
  assert {x.dtype for x in tensors.values()} == {np.dtype("float32")}


@pytest.mark.parametrize(
  ("given", "told"),
  [
    ({"use_dora": True}, r"use_dora is True, which .* must be false"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
    ({"r": 0}, "r is 0 and lora_alpha 6"),
    ({"r": 4}, r"lora_A\.weight has the shape \[3, 32\]; .* \[4, 32\]"),
  ],
  ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_settings_that_would_be_another_kind(base, tmp_path, given, told):
  folder = tmp_path / "peft"
  _save_with_peft(base, folder)
  path = folder / CONFIG
  path.write_text(json.dumps({**json.loads(path.read_text()), **given}))
  with pytest.raises(UserError, match=told) as error:
    _open(base, folder)
  assert str(folder) in str(error.value)


STEM = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda t: t.pop(f"{STEM}.lora_B.weight"), "lora_B.weight is missing"),
    (
      lambda t: t.update({f"{STEM.replace('1', '7')}.lora_A.weight": t[A]}),
      r"layers\.7\..* belongs to no layer",
    ),
    (
      lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[A]}),
      r"lm_head\.lora_A\.weight is not supported",
    ),
    (dict.clear, "holds no tensor"),
  ],
  ids=["missing", "left over", "head", "empty"],
)
def test_tensors_that_do_not_fit(base, tmp_path, change, told):
  folder = tmp_path / "peft"
  _save_with_peft(base, folder)
  tensors = safetensors.numpy.load_file(folder / TENSORS)
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / TENSORS)
  with pytest.raises(UserError, match=told) as error:
    _open(base, folder)
  assert str(folder) in str(error.value)


A = f"{STEM}.lora_A.weight"


def test_an_adapter_of_another_base(base, make_torch, tmp_path):
  folder = tmp_path / "peft"
  _save_with_peft(base, folder)
  _open(base, folder)
  # Of another shape.
  make_torch(hidden_size=16).save_pretrained(tmp_path / "narrow")
  with pytest.raises(UserError, match=r"is \[3, 16\] in each of 2 layers"):
    _open(tmp_path / "narrow", folder)
  # Of the same shape: a copy serves, other numbers do not.
  other = shutil.copytree(base, tmp_path / "other")
  _open(other, folder)
  tensors = safetensors.numpy.load_file(other / "model.safetensors")
  tensors["model.norm.weight"] *= 2
  safetensors.numpy.save_file(tensors, other / "model.safetensors")
  with pytest.raises(UserError, match="belongs to the weights in") as error:
    _open(other, folder)
  for each in (base, other, folder):
    assert str(each) in str(error.value)
  # As the message says.
  path = folder / CONFIG
  told = {**json.loads(path.read_text()), "base_model_name_or_path": None}
  path.write_text(json.dumps(told))
  _open(other, folder)


def test_folders_that_cannot_be_read(tmp_path):
  lora = config.Lora(path=str(tmp_path))
  with pytest.raises(UserError, match=r"no .*adapter_config\.json"):
    with_adapter(lora)
  (tmp_path / CONFIG).write_text("[]")
  with pytest.raises(UserError, match=r"bin is a pickle"):
    with_adapter(lora)
  (tmp_path / TENSORS).write_bytes(b"")
  with pytest.raises(UserError, match="holds no JSON object"):
    with_adapter(lora)
  (tmp_path / CONFIG).write_text('{"r": 1, "lora_alpha": 1}')
  with pytest.raises(UserError, match="not a whole safetensors file"):
    with_adapter(lora)


@pytest.mark.parametrize(
  "given", [{"rank": 4}, {"alpha": 3.0}, {"rs": True}, {"targets": "q_proj"}]
)
def test_settings_beside_an_adapter(base, tmp_path, given):
  folder = tmp_path / "peft"
  _save_with_peft(base, folder)
  same = config.Lora(path=str(folder), rank=3, alpha=6.0)
  assert with_adapter(same) == with_adapter(config.Lora(path=str(folder)))
  (name,) = given
  with pytest.raises(UserError, match=f"config.model.lora.{name} is"):
    with_adapter(config.Lora(path=str(folder), **given))


def test_an_export_replaces_an_adapter_only(base, tmp_path):
  definition = _definition(base, rank=1)
  factors = _trained(definition)
  save_adapter(tmp_path / "out", definition, factors)
  (tmp_path / "out" / "extra").touch()
  save_adapter(tmp_path / "out", definition, factors)
  names = {each.name for each in (tmp_path / "out").iterdir()}
  assert names == {CONFIG, TENSORS}
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.tex").touch()
  with pytest.raises(UserError, match=r"has no adapter_config\.json"):
    save_adapter(tmp_path / "mine", definition, factors)


def _params(base):
  return load_params(base, define(read_config(base), dtype="float32"))


def _open(base, folder):
  lora = config.Lora(path=str(folder))
  settings = resolve_model(config.Model(path=str(base), lora=lora), "cpu")
  return open_source(settings, seed=0, tokenizer=None)


def _save_with_peft(base, folder, **given):
  model = transformers.LlamaForCausalLM.from_pretrained(base)
  settings = peft.LoraConfig(
    r=3,
    lora_alpha=6,
    target_modules=["q_proj", "up_proj"],
    task_type="CAUSAL_LM",
    **given,
  )
  model = peft.get_peft_model(model, settings)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "lora_" in name:
        weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
  model.save_pretrained(folder)
