"""Folders read and written; stories260K is the real one."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models import export
from jaxpref.models.build import bind, define
from jaxpref.models.huggingface import (
  load_params,
  read_config,
  save_pretrained,
)
from jaxpref.ops.attention import padded_attention


@pytest.fixture
def stories(shared):
  return shared / "models" / "stories260K"


@pytest.fixture
def tiny(make_torch, folder_of):
  return folder_of(make_torch(attention_bias=True, mlp_bias=True))


def _load(folder):
  definition = define(read_config(folder), dtype="float32")
  return definition, load_params(folder, definition)


def _tensors(folder):
  tensors = {}
  for path in sorted(folder.glob("*.safetensors")):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def _logits(definition, params, tokens, valid):
  def forward(params):
    model = bind(definition, params)
    position = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden, _ = model(tokens, position, padded_attention(valid))
    return hidden @ model.head_kernel()

  return np.asarray(jax.jit(forward)(params))


def _torch_logits(folder, tokens, valid):
  model = transformers.LlamaForCausalLM.from_pretrained(folder)
  with torch.no_grad():
    return model(
      torch.tensor(np.asarray(tokens), dtype=torch.long),
      attention_mask=torch.tensor(np.asarray(valid), dtype=torch.long),
      position_ids=torch.tensor(
        np.maximum(np.cumsum(np.asarray(valid), axis=1) - 1, 0)
      ),
    ).logits.numpy()


def _inputs(side):
  tokens = np.random.default_rng(0).integers(3, 512, (3, 100))
  valid = np.ones((3, 100), bool)
  if side == "right":
    valid[1, 60:] = valid[2, 10:] = False
  if side == "left":
    valid[1, :40] = valid[2, :90] = False
  return jnp.asarray(tokens, jnp.int32), jnp.asarray(valid)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_stories_logits_match_transformers(stories, side):
  tokens, valid = _inputs(side)
  definition, params = _load(stories)
  ours = _logits(definition, params, tokens, valid)
  expected = _torch_logits(stories, tokens, valid)
  # Measured: 3e-5, with logits of up to 18.
  np.testing.assert_allclose(ours[valid], expected[valid], atol=1e-4)
  # A scale of one norm by 1 % would be seen.
  params["norm"]["scale"] = 1.01 * params["norm"]["scale"]
  wrong = _logits(definition, params, tokens, valid)
  assert np.abs(wrong[valid] - expected[valid]).max() > 1e-2


@pytest.mark.parametrize("max_file_bytes", [10**9, 150_000])
def test_stories_come_back_bit_equal(stories, tmp_path, max_file_bytes):
  definition, params = _load(stories)
  out = tmp_path / "deep" / "export"
  save_pretrained(
    out, definition, params, stories, max_file_bytes=max_file_bytes
  )
  before, after = _tensors(stories), _tensors(out)
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[name], strict=True)
  sharded = (out / "model.safetensors.index.json").exists()
  assert sharded == (max_file_bytes < 10**9)
  for path in out.glob("*.safetensors"):
    assert path.stat().st_size < max_file_bytes + 10_000  # and the header
  # Read again by us, index or not, and by transformers.
  _, again = _load(out)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  tokens, valid = _inputs("none")
  np.testing.assert_allclose(
    _torch_logits(out, tokens, valid),
    _torch_logits(stories, tokens, valid),
    atol=1e-5,
  )
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (out / name).read_bytes() == (stories / name).read_bytes()
  ids = json.loads((out / "generation_config.json").read_text())
  assert ids == {"bos_token_id": 1, "eos_token_id": 2}
  assert [path.name for path in out.parent.iterdir()] == ["export"]


def test_shards_are_read_and_gathered(tiny, tmp_path):
  mesh = sharding.make_mesh(1, 4, 2)
  definition, alone = _load(tiny)
  shardings = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  params = load_params(tiny, definition, shardings)
  kernel = params["layers"]["mlp"]["up"]["kernel"]
  assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
  jax.tree.map(np.testing.assert_array_equal, params, alone)
  save_pretrained(tmp_path / "export", definition, params)
  before, after = _tensors(tiny), _tensors(tmp_path / "export")
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[name])


def test_bfloat16_folder(tiny, tmp_path):
  folder = tmp_path / "half"
  model = transformers.LlamaForCausalLM.from_pretrained(
    tiny, dtype=torch.bfloat16
  )
  model.save_pretrained(folder)
  _, params = _load(folder)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  half = define(read_config(folder), dtype="float32", param_dtype="bfloat16")
  save_pretrained(tmp_path / "out", half, load_params(folder, half))
  before, after = _tensors(folder), _tensors(tmp_path / "out")
  for name, tensor in before.items():
    np.testing.assert_array_equal(tensor, after[name], strict=True)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def _edit(folder, change):
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def test_buffers_and_a_redundant_head_are_left_out(stories, tmp_path):
  folder = shutil.copytree(stories, tmp_path / "model")

  def change(tensors):
    embed = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embed.copy()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors[name] = np.ones(4, np.float32)

  _edit(folder, change)
  jax.tree.map(
    np.testing.assert_array_equal, _load(folder)[1], _load(stories)[1]
  )


GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda t: t.pop(GATE), f"{GATE} is missing"),
    (lambda t: t.update(score=t[GATE]), "score is left over"),
    (lambda t: t.update({GATE: t[GATE].T.copy()}), f"{GATE} has the shape"),
    (lambda t: t.update({GATE: t[GATE].astype("int8")}), f"{GATE} is I8"),
  ],
  ids=["missing", "left_over", "shape", "dtype"],
)
def test_wrong_tensors_are_named(tiny, change, words):
  definition, _ = _load(tiny)
  _edit(tiny, change)
  with pytest.raises(UserError) as error:
    load_params(tiny, definition)
  assert words in str(error.value)
  assert str(tiny) in str(error.value)


def test_wrong_files_are_named(tiny, tmp_path):
  definition, _ = _load(tiny)
  weights = tiny / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"model.safetensors: not a whole"):
    load_params(tiny, definition)
  weights.unlink()
  with pytest.raises(UserError, match=r"no model.safetensors and no"):
    load_params(tiny, definition)
  (tiny / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(UserError, match="is a pickle"):
    load_params(tiny, definition)
  index = {"weight_map": {GATE: "model-00001-of-00002.safetensors"}}
  (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(UserError, match=r"model-00001-of-00002.safetensors: th"):
    load_params(tiny, definition)
  (tiny / "config.json").write_text("{")
  with pytest.raises(UserError, match=r"config.json: not readable"):
    read_config(tiny)
  with pytest.raises(UserError, match="there is no such folder"):
    read_config(tmp_path / "nowhere")


def test_an_export_replaces_an_export_only(tiny, tmp_path):
  definition, params = _load(tiny)
  out = tmp_path / "out"
  save_pretrained(out, definition, params)
  (out / "extra").touch()
  save_pretrained(out, definition, params)
  assert not (out / "extra").exists()
  other = tmp_path / "mine"
  other.mkdir()
  (other / "thesis.tex").touch()
  with pytest.raises(UserError, match="is not a model folder"):
    save_pretrained(other, definition, params)
  assert (other / "thesis.tex").exists()


def test_nothing_half_written_is_left(tiny, tmp_path, monkeypatch):
  definition, params = _load(tiny)
  out = tmp_path / "out"
  monkeypatch.setattr(export, "write_safetensors", _fail)
  with pytest.raises(OSError, match="disk full"):
    save_pretrained(out, definition, params)
  assert not out.exists()


def _fail(*_):
  raise OSError("disk full")


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_part_of_a_model_of_images(make_torch, folder_of, prefix):
  """Its tensors are found below the prefixes of transformers 4 and 5."""
  folder = folder_of(
    make_torch(
      "gemma3_text",
      tie_word_embeddings=True,
      num_hidden_layers=1,
      pad_token_id=None,
    )
  )
  _, expected = _load(folder)
  old = prefix == "language_model."
  tensors = {
    prefix + (name if old else name.removeprefix("model.")): tensor
    for name, tensor in _tensors(folder).items()
  }
  images = "" if old else "model."
  tensors[f"{images}vision_tower.patch.weight"] = np.zeros(3, np.float32)
  tensors[f"{images}multi_modal_projector.weight"] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  text = json.loads((folder / "config.json").read_text())
  whole = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
  (folder / "config.json").write_text(json.dumps(whole))
  definition, params = _load(folder)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  save_pretrained(folder.with_name("out"), definition, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    folder.with_name("out")
  )
  assert type(again).__name__ == "Gemma3ForCausalLM"
  tensors["stray.weight"] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  with pytest.raises(UserError, match=r"stray\.weight is left over"):
    _load(folder)
