"""Log-probabilities of tokens without the [tokens, vocab] logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxpref.sharding import constrain
from jaxpref.types import checked


@checked
def token_logp(
  hidden: Float[Array, "rows tokens embed"],
  kernel: Float[Array, "embed vocab"],
  target: Int32[Array, "rows tokens"],
  *,
  block: int,
) -> Float32[Array, "rows tokens"]:
  """log softmax(hidden @ kernel)[target], in nats.

  The vocabulary is scored `block` tokens of each row at a time, and once more
  in the backward pass, so that no more than [rows, block, vocab] logits are
  ever held.

  Args:
    hidden: final hidden states; the products are accumulated in float32.
    kernel: the output projection, of the same dtype.
    target: the ids whose log-probabilities are wanted.
    block: tokens of a row scored at a time.
  """
  rows, tokens = target.shape
  blocks = max(1, -(-tokens // block))
  size = -(-tokens // blocks)
  padding = blocks * size - tokens
  # Gathered once, outside the loop: a gather in each block would cost more
  # than the products.
  kernel = constrain(kernel, ("act_embed", "vocab"))

  def split(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(rows, blocks, size, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def score(_: None, part: tuple[Array, Array]) -> tuple[None, Array]:
    logits = jnp.einsum(
      "rtd,dv->rtv", part[0], kernel, preferred_element_type=jnp.float32
    )
    logits = constrain(logits, ("batch", "length", "vocab"))
    # A sum over a mask, not a gather: it fuses, its gradient is no scatter,
    # and each shard of the vocabulary looks at its own part.
    hit = part[1][..., None] == jnp.arange(logits.shape[-1])[None, None]
    at_target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return None, at_target - jax.nn.logsumexp(logits, axis=-1)

  _, logp = jax.lax.scan(score, None, (split(hidden), split(target)))
  return jnp.moveaxis(logp, 0, 1).reshape(rows, -1)[:, :tokens]
