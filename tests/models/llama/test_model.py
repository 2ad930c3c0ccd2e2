"""Logits and gradients against transformers' Llama."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref import sharding
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.huggingface import load_params, read_config
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.ops.attention import packed_attention, padded_attention

LENGTH = 24
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
CASES = {
  "grouped": {},
  "multi_head": {"num_key_value_heads": 4},
  "one_kv_head": {"num_key_value_heads": 1},
  "tied": {"tie_word_embeddings": True},
  "biases": {"attention_bias": True, "mlp_bias": True},
  "head_dim": {"head_dim": 16},
  "gelu": {"hidden_act": "gelu"},
  "gelu_tanh": {"hidden_act": "gelu_pytorch_tanh"},
  "eps": {"rms_norm_eps": 0.1},
  "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
  "linear": {
    "rope_parameters": {
      "rope_type": "linear",
      "rope_theta": 10000.0,
      "factor": 3.0,
    }
  },
  # Positions reach past max_position_embeddings, where the base stretches.
  "dynamic": {
    "max_position_embeddings": 16,
    "rope_parameters": {
      "rope_type": "dynamic",
      "rope_theta": 10000.0,
      "factor": 4.0,
    },
  },
  "llama3": {"rope_parameters": LLAMA3},
}


def _wrong(config: LlamaConfig) -> LlamaConfig:
  rope = config.rope_parameters
  rope = dataclasses.replace(rope, rope_theta=1.05 * rope.rope_theta)
  return dataclasses.replace(config, rope_parameters=rope)


def _logits(definition, params, tokens, valid):
  def forward(params, tokens, valid):
    model = bind(definition, params)
    position = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden, _ = model(tokens, position, padded_attention(valid))
    return hidden @ model.head_kernel()

  return np.asarray(jax.jit(forward)(params, tokens, valid))


def _torch_logits(model, tokens, valid):
  position = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
  with torch.no_grad():
    return model(
      torch.tensor(tokens, dtype=torch.long),
      attention_mask=torch.tensor(valid, dtype=torch.long),
      position_ids=torch.tensor(position),
    ).logits.numpy()


def _inputs(side: str, vocab: int = 96):
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, vocab, (3, LENGTH)).astype(np.int32)
  valid = np.ones((3, LENGTH), bool)
  if side == "right":
    valid[1, 17:] = valid[2, 9:] = False
  if side == "left":
    valid[1, :7] = valid[2, :15] = False
  return tokens, valid


@pytest.mark.parametrize("name", CASES)
def test_logits_match_transformers(name, make_torch, folder_of):
  model = make_torch(**CASES[name])
  folder = folder_of(model)
  config = read_config(folder)
  params = load_params(folder, define(config, dtype="float32"))
  for side in ("none", "left", "right"):
    tokens, valid = _inputs(side)
    if name == "dynamic" and side != "none":
      continue  # transformers stretches by the longest row, we by each
    expected = _torch_logits(model, tokens, valid)
    ours = _logits(define(config, dtype="float32"), params, tokens, valid)
    # Measured: 6e-6 at most, with logits of up to 5.
    np.testing.assert_allclose(ours[valid], expected[valid], atol=1e-4)
    assert np.isfinite(ours).all()
    wrong = define(_wrong(config), dtype="float32")
    wrong = _logits(wrong, params, tokens, valid)
    assert np.abs(wrong[valid] - expected[valid]).max() > 1e-3


@pytest.mark.parametrize("name", ["grouped", "tied", "biases"])
def test_gradients_match_transformers(name, make_torch, folder_of):
  model = make_torch(**CASES[name])
  folder = folder_of(model)
  definition = define(read_config(folder), dtype="float32")
  params = load_params(folder, definition)
  tokens, valid = _inputs("none")

  def loss(params):
    bound = bind(definition, params)
    position = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (3, 1))
    attend = padded_attention(jnp.asarray(valid))
    hidden, _ = bound(jnp.asarray(tokens), position, attend)
    logp = jax.nn.log_softmax(hidden @ bound.head_kernel())[:, :-1]
    picked = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(picked)

  grads = jax.jit(jax.grad(loss))(params)
  ids = torch.tensor(tokens, dtype=torch.long)
  model(ids, labels=ids).loss.backward()
  theirs = dict(model.named_parameters())

  def check(grad, weight):
    expected = theirs[weight].grad.numpy()
    # Measured: 3e-7 at most.
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3  # so the tolerance means something

  layers, last = grads["layers"], "model.layers.1"
  check(grads["embed"]["table"], "model.embed_tokens.weight")
  check(layers["mlp"]["down"]["kernel"][1].T, f"{last}.mlp.down_proj.weight")
  q, k = (layers["attention"][x]["kernel"][1] for x in "qk")
  check(q.reshape(32, -1).T, f"{last}.self_attn.q_proj.weight")
  check(k.reshape(32, -1).T, f"{last}.self_attn.k_proj.weight")
  check(
    layers["mlp_norm"]["scale"][1], f"{last}.post_attention_layernorm.weight"
  )
  if name == "biases":
    bias = layers["attention"]["v"]["bias"][1]
    check(bias.reshape(-1), f"{last}.self_attn.v_proj.bias")


def _config(**given) -> LlamaConfig:
  arch = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
  }
  return LlamaConfig.from_arch({**arch, **given})


@pytest.mark.parametrize(
  "others",
  [
    {"initializer_range": 1.0},
    {
      # Embeddings are scaled, so that these are of order one too.
      "model_type": "gemma2",
      "initializer_range": 0.2,
      "num_hidden_layers": 3,
      "sliding_window": 3,
      "attn_logit_softcapping": 2.0,
    },
  ],
  ids=["llama", "gemma2"],
)
def test_packed_rows_match_single_sequences(others):
  """Two trees in a row (a prompt and two responses; one and one)."""
  # Embeddings of order one, lest their gradients be fifty times the others.
  definition = define(_config(**others), dtype="float32")
  params = init_params(definition, jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 64, (1, 16)).astype(np.int32)
  # Tree A: prompt 0-2, responses 3-6 and 7-8. Tree B: prompt 9-11, 12-14;
  # token 15 is padding.
  trees = [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8], [9, 10, 11, 12, 13, 14]]
  position = np.array(
    [[0, 1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2, 3, 4, 5, 0]], np.int32
  )
  long, short = np.zeros((1, 2, 8), np.int32), np.zeros((1, 1, 5), np.int32)
  long[0, 0, :7], long[0, 1, :6] = trees[0], trees[2]
  short[0, 0] = trees[1]
  collapse = np.array(
    [[0, 1, 2, 3, 4, 5, 6, 19, 20, 8, 9, 10, 11, 12, 13, 0]], np.int32
  )
  tokens, position = jnp.asarray(tokens), jnp.asarray(position)
  long, short = jnp.asarray(long), jnp.asarray(short)
  probe = jax.random.normal(jax.random.key(1), (1, 16, 32))

  def packed(params):
    attend = packed_attention((long, short), jnp.asarray(collapse))
    hidden, _ = bind(definition, params)(tokens, position, attend)
    picked = (hidden * probe)[:, :15]
    return jnp.sum(picked), picked

  def single(params):
    picked = []
    for index in trees:
      part = tokens[:, jnp.array(index)]
      place = jnp.arange(len(index), dtype=jnp.int32)[None]
      attend = padded_attention(jnp.ones((1, len(index)), bool))
      hidden, _ = bind(definition, params)(part, place, attend)
      picked.append(hidden[0] * probe[0, jnp.array(index)])
    # The prompt of tree A counts once.
    picked = jnp.concatenate([picked[0], picked[1][3:], picked[2]])
    return jnp.sum(picked), picked[None]

  (_, ours), grads = _value_and_grad(packed)(params)
  (_, theirs), expected = _value_and_grad(single)(params)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)  # measured: 1e-6
  # Measured: 6e-6, with gradients of up to 19.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, expected
  )


def _value_and_grad(loss):
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("remat", ["nothing_saveable", "dots_saveable"])
def test_remat_changes_no_number(remat):
  config = _config()
  params = init_params(define(config, dtype="float32"), jax.random.key(0))
  tokens, valid = map(jnp.asarray, _inputs("none", 64))

  def grads(remat):
    definition = define(config, dtype="float32", remat=remat)

    def loss(params):
      position = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (3, 1))
      attend = padded_attention(valid)
      return jnp.sum(bind(definition, params)(tokens, position, attend)[0] ** 3)

    program = jax.jit(jax.grad(loss))
    return program.lower(params), program(params)

  (kept, expected), (again, ours) = grads(""), grads(remat)
  assert kept.as_text() != again.as_text()
  jax.tree.map(
    # Sums in another order: measured 6e-5, with gradients of up to 9,000.
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
    ours,
    expected,
  )


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  definition = define(_config(), dtype="bfloat16")
  params = init_params(definition, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  tokens, valid = map(jnp.asarray, _inputs("none", 64))
  position = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (3, 1))

  def forward(params):
    model = bind(definition, params)
    attend = padded_attention(valid)
    return model(tokens, position, attend)[0], model.head_kernel()

  hidden, kernel = jax.jit(forward)(params)
  assert hidden.dtype == kernel.dtype == jnp.bfloat16
  text = jax.jit(forward).lower(params).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert products
  for line in products:  # inputs of every matrix product
    assert "bf16>, tensor<" in line.split("->")[0], line


# One other value for every field that the model reads, of a model in which
# everything is switched on.
EVERYTHING = {
  "model_type": "gemma3_text",
  "attention_bias": True,
  "final_logit_softcapping": 30.0,
  "sliding_window": 4,
  "sliding_window_pattern": 2,
  "query_pre_attn_scalar": 8,
}
OTHER = {
  "vocab_size": 65,
  "hidden_size": 48,
  "intermediate_size": 40,
  "num_hidden_layers": 4,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 16,
  "hidden_act": "relu",
  "max_position_embeddings": 8,
  "rms_norm_eps": 1e-3,
  "norm_offset": False,
  "post_norms": False,
  "qk_norm": False,
  "scale_embeddings": False,
  "tie_word_embeddings": False,
  "qkv_bias": False,
  "o_bias": False,
  "mlp_bias": True,
  "query_pre_attn_scalar": 9,
  "attn_logit_softcapping": 40.0,
  "final_logit_softcapping": 0.0,
  "layer_types": ("full_attention", "sliding_attention"),
  "sliding_window": 5,
  "initializer_range": 0.5,
  "rope_parameters.rope_type": "linear",
  "rope_parameters.rope_theta": 20.0,
  "rope_parameters.factor": 3.0,
  "rope_parameters.low_freq_factor": 2.0,
  "rope_parameters.high_freq_factor": 3.0,
  "rope_parameters.original_max_position_embeddings": 100,
}
EXPORTED = {
  "model_type": "gemma2",
  "bos_token_id": 5,
  "eos_token_id": (6, 7),
  "pad_token_id": 8,
}


def _fields() -> list[str]:
  """Those of the local RoPE are walked by those of the other."""
  names = []
  for field in dataclasses.fields(LlamaConfig):
    value = getattr(LlamaConfig(), field.name)
    if dataclasses.is_dataclass(value):
      inner = dataclasses.fields(value)
      names += [f"{field.name}.{each.name}" for each in inner]
    else:
      names.append(field.name)
  return names


def _program(config: LlamaConfig) -> str:
  definition = define(config, dtype="float32", remat="")

  def run(key, tokens, position):
    params = init_params(definition, key)
    model = bind(definition, params)
    attend = padded_attention(jnp.ones((1, 8), bool))
    hidden, _ = model(tokens, position, attend)
    return model.cap(hidden @ model.head_kernel())

  ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  return jax.jit(run).lower(jax.random.key(0), ids, ids).as_text()


@functools.cache
def _base(kind: str) -> tuple[LlamaConfig, str]:
  scaling = {"rope_type": kind, "factor": 2.0}
  if kind == "llama3":
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 16}
  config = _config(rope_scaling=scaling, **EVERYTHING)
  return config, _program(config)


@pytest.mark.parametrize("field", _fields())
def test_every_field_is_read(field):
  *outer, name = field.split(".")
  kind = "dynamic" if name == "max_position_embeddings" else "llama3"
  config, program = _base(kind)
  if name in EXPORTED:
    changed = dataclasses.replace(config, **{name: EXPORTED[name]})
    assert changed.to_hf() != config.to_hf()
    return
  if name == "local_rope_parameters":
    changed = dataclasses.replace(config, **{name: None})
  elif outer:
    rope = dataclasses.replace(config.rope_parameters, **{name: OTHER[field]})
    changed = dataclasses.replace(config, rope_parameters=rope)
  else:
    changed = dataclasses.replace(config, **{name: OTHER[field]})
  assert _program(changed) != program


def test_rows_are_sharded_without_communication_of_attention():
  """On 8 devices the gathers of packed rows stay where the rows are."""
  mesh = sharding.make_mesh(8, 1, 1)
  rows = sharding.batch_sharding(mesh, axis=0)
  definition = define(_config(), dtype="float32")
  expand = jax.ShapeDtypeStruct((8, 2, 8), jnp.int32, sharding=rows)
  ids = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)

  def forward(params, tokens, position, expand, collapse):
    attend = packed_attention((expand,), collapse)
    return bind(definition, params)(tokens, position, attend)[0]

  with jax.set_mesh(mesh):
    forward = jax.jit(forward, out_shardings=rows)
    program = forward.lower(definition.shapes, ids, ids, expand, ids)
    text = program.compile().as_text()
  for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert name not in text
