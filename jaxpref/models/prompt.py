"""Prompt tuning: virtual tokens before every text train, and nothing else.

Reference: Lester et al. 2021 (https://arxiv.org/abs/2104.08691). Places and
outputs are those of the library PEFT: the virtual tokens stand before BOS at
the positions 0, 1, ..., and the text's positions follow theirs.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key


class PromptParam(nnx.Param):
  """Of virtual tokens: it trains, and the model below stays."""


class SoftPrompt(nnx.Module):
  """Puts learned vectors at the first positions of every sequence.

  They take the place of what the blocks read there, after the factor by which
  some models scale their embeddings, and are always float32: updates are small
  beside them. Zero until `init_params` puts rows of the vocabulary there.
  """

  def __init__(self, length: int, size: int):
    zeros = jnp.zeros((length, size), jnp.float32)
    self.embedding = PromptParam(zeros, axes=("length", "act_embed"))

  def __call__(
    self,
    x: Float[Array, "rows tokens embed"],
    position: Int32[Array, "rows tokens"],
  ) -> Float[Array, "rows tokens embed"]:
    """x with the virtual tokens at the positions that are theirs.

    Args:
      x: embeddings; what they are at those positions does not matter.
      position: place of each token in its sequence, virtual ones included.
        Pads may stand at 0 too, since nothing looks at them.
    """
    own = self.embedding[...].astype(x.dtype)
    virtual = jnp.take(own, position, axis=0, mode="clip")
    return jnp.where(position[..., None] < len(own), virtual, x)


def draw_rows(
  key: Key[Array, ""], length: int, vocab_size: int
) -> Int32[Array, " length"]:
  """The ids of the vocabulary whose embeddings virtual tokens begin with.

  Uniform, as PEFT's SAMPLE_VOCAB. PEFT's default, RANDOM, is a normal vector
  of deviation 1, which lies far from all that a model has seen: embeddings
  have 0.02 or so.
  """
  # A number that no layer's key has been folded with.
  key = jax.random.fold_in(key, 0x7FFFFFFF)
  return jax.random.randint(key, (length,), 0, vocab_size, jnp.int32)
