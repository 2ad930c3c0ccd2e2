"""Rotary position embeddings, in the half-split layout of Hugging Face.

Reference: Su et al. 2021 (https://arxiv.org/abs/2104.09864). The scaled forms
are those of Llama 2 (linear, dynamic) and Llama 3.1 (llama3).
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32
import numpy as np

from jaxpref.types import checked


@dataclasses.dataclass(frozen=True)
class Rope:
  """Field names as in `rope_parameters` of a Hugging Face config.json."""

  rope_type: str = "default"  # default | linear | dynamic | llama3
  rope_theta: float = 10000.0
  factor: float = 1.0
  low_freq_factor: float = 1.0  # llama3 only, like the next two
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192


ROPE_FIELDS: dict[str, tuple[str, ...]] = {
  "default": (),
  "linear": ("factor",),
  "dynamic": ("factor",),
  "llama3": (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  ),
}
"""What each type reads besides `rope_theta`."""


@checked
def angles(
  position: Int32[Array, "rows tokens"],
  rope: Rope,
  *,
  head_dim: int,
  max_position: int,
) -> Float32[Array, "rows tokens half"]:
  """The angle, in radians, by which each pair of a head's channels turns.

  Args:
    position: place of each token in its sequence, from 0.
    rope: type and base of the embedding.
    head_dim: channels of a head; `half` is half of it.
    max_position: `max_position_embeddings`, beyond which the type 'dynamic'
      stretches its base: by the largest position of the *row*, so that a row
      does not depend on the rows beside it.
  """
  frequency = _frequency(position, rope, head_dim, max_position)
  return position[:, :, None].astype(jnp.float32) * frequency


@checked
def rotate(
  x: Float[Array, "rows tokens heads head_dim"],
  cos: Float32[Array, "rows tokens half"],
  sin: Float32[Array, "rows tokens half"],
) -> Float[Array, "rows tokens heads head_dim"]:
  """Turns channel pairs (i, i + head_dim/2), in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _frequency(
  position: Int32[Array, "rows tokens"],
  rope: Rope,
  head_dim: int,
  max_position: int,
) -> Float32[Array, "rows_or_1 1 half"]:
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  if rope.rope_type == "dynamic":
    length = jnp.max(position, axis=1) + 1
    stretch = jnp.maximum(length / max_position, 1.0).astype(jnp.float32)
    stretch = rope.factor * stretch - (rope.factor - 1.0)
    base = rope.rope_theta * stretch ** (head_dim / (head_dim - 2))
    return 1.0 / base[:, None, None] ** jnp.asarray(exponent)[None, None, :]
  frequency = 1.0 / np.float32(rope.rope_theta) ** exponent
  if rope.rope_type == "linear":
    frequency = frequency / np.float32(rope.factor)
  if rope.rope_type == "llama3":
    frequency = _llama3(frequency, rope)
  return jnp.asarray(frequency, jnp.float32)[None, None, :]


def _llama3(frequency: np.ndarray, rope: Rope) -> np.ndarray:
  # Long wavelengths are divided by the factor, short ones kept; between, the
  # share kept grows linearly with the turns made in the original length.
  low, high = rope.low_freq_factor, rope.high_freq_factor
  turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequency * (kept + (1.0 - kept) / rope.factor)
