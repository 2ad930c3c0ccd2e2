"""Rotary embeddings against transformers' frequencies and a hand value."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import (
  LlamaRotaryEmbedding,
  apply_rotary_pos_emb,
)

from jaxpref.ops.rope import Rope, angles, rotate

ROPES = {
  "default": Rope(),
  "theta": Rope(rope_theta=500000.0),
  "linear": Rope("linear", 10000.0, factor=4.0),
  "dynamic": Rope("dynamic", 10000.0, factor=2.0),
  "llama3": Rope("llama3", 500000.0, factor=8.0),
  "llama3.2": Rope(
    "llama3",
    10000.0,
    factor=32.0,
    low_freq_factor=2.0,
    high_freq_factor=5.0,
    original_max_position_embeddings=512,
  ),
}
KEYS = {
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ),
}


def _torch_rope(rope: Rope, head_dim: int) -> LlamaRotaryEmbedding:
  keys = ("rope_type", "rope_theta", *KEYS.get(rope.rope_type, ()))
  config = transformers.LlamaConfig(
    hidden_size=4 * head_dim,
    num_attention_heads=4,
    head_dim=head_dim,
    max_position_embeddings=100,
    rope_parameters={key: getattr(rope, key) for key in keys},
  )
  return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("length", [50, 300])
def test_matches_transformers(name, head_dim, length):
  position = np.arange(length, dtype=np.int32)[None]
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, length, 3, head_dim)).astype(np.float32)
  heads = torch.tensor(x).transpose(1, 2)
  cos, sin = _torch_rope(ROPES[name], head_dim)(heads, torch.tensor(position))
  expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin)
  expected = expected.transpose(1, 2).numpy()

  def turned(rope):
    angle = angles(
      jnp.asarray(position), rope, head_dim=head_dim, max_position=100
    )
    return rotate(jnp.asarray(x), jnp.cos(angle), jnp.sin(angle))

  # Measured: 7e-5 at position 299, from the last bit of the frequencies.
  np.testing.assert_allclose(turned(ROPES[name]), expected, atol=2e-4)
  theta = 1.05 * ROPES[name].rope_theta
  wrong = dataclasses.replace(ROPES[name], rope_theta=theta)
  assert np.abs(turned(wrong) - expected).max() > 1e-2


def test_a_quarter_turn():
  x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  angle = jnp.array([jnp.pi / 2, 0.0]).reshape(1, 1, 2)
  out = rotate(x, jnp.cos(angle), jnp.sin(angle))
  np.testing.assert_allclose(out[0, 0, 0], [-3.0, 2.0, 1.0, 4.0], atol=1e-6)


def test_dynamic_stretches_by_the_row_alone():
  position = jnp.array([[0, 5, 250], [0, 5, 7]], jnp.int32)
  rope, sizes = ROPES["dynamic"], {"head_dim": 8, "max_position": 100}
  both = angles(position, rope, **sizes)
  np.testing.assert_array_equal(both[:1], angles(position[:1], rope, **sizes))
  np.testing.assert_allclose(
    both[1], angles(position[1:], Rope(), **sizes)[0], rtol=1e-6
  )
