"""Log-probabilities of tokens without the [tokens, vocab] logits."""

from collections.abc import Callable
import functools
from typing import Any

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
  tokens = target.shape[1]
  blocks = max(1, -(-tokens // block))
  size = -(-tokens // blocks)

  def split(x: Array) -> Array:
    """[rows, tokens, ...] to [blocks, rows, size, ...]."""
    widths = ((0, 0), (0, blocks * size - tokens)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, widths).reshape(x.shape[0], blocks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  # Gathered once, outside the loop: a gather in each block would cost more
  # than the products.
  kernel = constrain(kernel, ("act_embed", "vocab"))
  logp = _blockwise(split(hidden), kernel, split(target))
  return jnp.moveaxis(logp, 0, 1).reshape(target.shape[0], -1)[:, :tokens]


# Below, arrays of tokens are [blocks, rows, size, ...].


@jax.custom_vjp
def _blockwise(hidden: Array, kernel: Array, target: Array) -> Array:
  return _forward(hidden, kernel, target)[0]


def _forward(
  hidden: Array, kernel: Array, target: Array
) -> tuple[Array, tuple[Array, ...]]:
  def score(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    logits = _logits(part[0], kernel)
    # A sum over a mask, not a gather: it fuses, and each shard of the
    # vocabulary looks at its own part.
    at_target = jnp.sum(jnp.where(_hit(part[1], logits), logits, 0.0), axis=-1)
    largest = jnp.max(logits, axis=-1)
    total = jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
    return at_target - (jnp.log(total) + largest), largest, total

  logp, largest, total = jax.lax.map(score, (hidden, target))
  return logp, (hidden, kernel, target, largest, total)


def _backward(
  kept: tuple[Array, ...], grad: Array
) -> tuple[Array, Array, None]:
  hidden, kernel, target, largest, total = kept

  def back(kernel_grad: Array, part: Any) -> tuple[Array, Array]:
    hidden, target, largest, total, grad = part
    logits = _logits(hidden, kernel)
    # Not exp(logits - log_sum): the sum would round them alike.
    probs = jnp.exp(logits - largest[..., None]) / total[..., None]
    logits_grad = grad[..., None] * (_hit(target, logits) - probs)
    # Products in the compute dtype, sums in float32.
    logits_grad = logits_grad.astype(kernel.dtype)
    hidden_grad = _einsum("rtv,dv->rtd", logits_grad, kernel)
    kernel_grad += _einsum("rtd,rtv->dv", hidden, logits_grad)
    kernel_grad = constrain(kernel_grad, ("act_embed", "vocab"))
    return kernel_grad, hidden_grad.astype(hidden.dtype)

  zeros = jnp.zeros(kernel.shape, jnp.float32)
  parts = (hidden, target, largest, total, grad)
  kernel_grad, hidden_grad = jax.lax.scan(back, zeros, parts)
  return hidden_grad, kernel_grad.astype(kernel.dtype), None


_blockwise.defvjp(_forward, _backward)


def _logits(hidden: Array, kernel: Array) -> Float32[Array, "rows size vocab"]:
  logits = _einsum("rtd,dv->rtv", hidden, kernel)
  return constrain(logits, ("batch", "length", "vocab"))


def _hit(target: Array, logits: Array) -> Array:
  """Whether each entry of the logits is the target's."""
  return target[..., None] == jnp.arange(logits.shape[-1])[None, None]


_einsum: Callable[..., Array] = functools.partial(
  jnp.einsum, preferred_element_type=jnp.float32
)
