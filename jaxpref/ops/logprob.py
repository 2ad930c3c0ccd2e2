"""Log-probabilities of tokens without the [tokens, vocab] logits."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxpref import sharding
from jaxpref.types import checked

Kept = TypeVar("Kept")


@checked
def token_logp(
  hidden: Float[Array, "rows tokens embed"],
  kernel: Float[Array, "embed vocab"],
  target: Int32[Array, "rows tokens"],
  *,
  block: int,
  softcap: float = 0.0,
) -> Float32[Array, "rows tokens"]:
  """log softmax(cap(hidden @ kernel))[target], in nats.

  The vocabulary is scored `block` entries at a time, so that no more than
  [rows, tokens, block] logits are ever held. A kernel that is differentiated
  is scored once more in the backward pass. One that is not, as below an
  adapter, is scored once: the gradient of each token's log-prob with respect
  to its hidden state is formed beside it, for the backward pass to scale.

  Where the mesh cuts the vocabulary, each shard scores its part, and sums go
  between shards: never logits, and the kernel only where it is cut otherwise.

  Args:
    hidden: final hidden states; the products are accumulated in float32.
    kernel: the output projection, of the same dtype.
    target: the ids whose log-probabilities are wanted.
    block: vocabulary entries scored at a time; fewer take less memory.
    softcap: cap(x) = softcap tanh(x / softcap); 0.0 = x itself.
  """
  return _logp(block, softcap, hidden, kernel, target)


_TOKENS, _HIDDEN = ("batch", "length"), ("batch", "length", "act_embed")
_INPUTS = (_HIDDEN, ("act_embed", "vocab"), _TOKENS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _logp(
  block: int, softcap: float, hidden: Array, kernel: Array, target: Array
) -> Array:
  def score(*inputs: Array) -> Array:
    return _sums(block, softcap, *inputs).logp

  return sharding.per_device(score, _INPUTS, _TOKENS)(hidden, kernel, target)


def _forward(
  block: int, softcap: float, hidden: Any, kernel: Any, target: Any
) -> tuple[Array, tuple[Array, ...]]:
  inputs = hidden.value, kernel.value, target.value
  if not kernel.perturbed:  # frozen
    both = functools.partial(_logp_and_pull, block, softcap)
    logp, pull = sharding.per_device(both, _INPUTS, (_TOKENS, _HIDDEN))(*inputs)
    return logp, (pull,)
  score = functools.partial(_sums, block, softcap)
  sums = sharding.per_device(score, _INPUTS, _Sums(*[_TOKENS] * 3))(*inputs)
  return sums.logp, (*inputs, sums.largest, sums.total)


def _backward(
  block: int, softcap: float, kept: tuple[Array, ...], grad: Array
) -> tuple[Array, Array | None, None]:
  if len(kept) == 1:  # a frozen kernel
    (pull,) = kept
    hidden_grad = grad[..., None] * pull.astype(jnp.float32)
    return hidden_grad.astype(pull.dtype), None, None
  score = functools.partial(_grads, block, softcap)
  inputs = (*_INPUTS, _TOKENS, _TOKENS, _TOKENS)
  outputs = (_HIDDEN, ("embed", "vocab"))
  return *sharding.per_device(score, inputs, outputs)(*kept, grad), None


_logp.defvjp(_forward, _backward, symbolic_zeros=True)


# Below, arrays are those of a shard: some of the rows, some of the vocabulary.


class _Sums(NamedTuple):
  """What a token's log-prob is made of, [rows, tokens]."""

  largest: Any  # logit
  total: Any  # of exp(logit - largest)
  at_target: Any  # logit

  @property
  def logp(self) -> Array:
    return self.at_target - (jnp.log(self.total) + self.largest)

  def add(self, logits: Array, hit: Array) -> "_Sums":
    """With the next entries of the vocabulary too."""
    largest = jnp.maximum(self.largest, jnp.max(logits, axis=-1))
    here = jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1)
    # A sum over a mask, not a gather: it fuses.
    at_target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return _Sums(
      largest,
      jnp.exp(self.largest - largest) * self.total + here,
      self.at_target + at_target,
    )

  def over_shards(self) -> "_Sums":
    largest = sharding.max_over("vocab", self.largest)
    total = jnp.exp(self.largest - largest) * self.total
    total, at_target = sharding.sum_over("vocab", (total, self.at_target))
    return _Sums(largest, total, at_target)


def _no_sums(target: Array) -> _Sums:
  zeros = jnp.zeros(target.shape, jnp.float32)
  return _Sums(zeros - jnp.inf, zeros, zeros)


def _sums(
  block: int, softcap: float, hidden: Array, kernel: Array, target: Array
) -> _Sums:
  def add(sums: _Sums, part: _Part) -> _Sums:
    return sums.add(part.logits(hidden, softcap), part.hit(target))

  sums = _over_vocab(block, kernel, add, _no_sums(target))
  return sums.over_shards()


def _logp_and_pull(
  block: int, softcap: float, hidden: Array, kernel: Array, target: Array
) -> tuple[Array, Array]:
  """Log-probs, and their gradient with respect to the hidden states.

  That is the target's column of the kernel less the expected one, which is
  summed as the probabilities are: as in attention, whose keys and values both
  are the kernel's columns. A cap scales each column by its slope.
  """

  def add(kept: tuple[_Sums, Array], part: _Part) -> tuple[_Sums, Array]:
    before, mean = kept
    logits = part.logits(hidden, softcap)
    sums = before.add(logits, part.hit(target))
    weights = jnp.exp(logits - sums.largest[..., None])
    weights = (weights * _slope(logits, softcap)).astype(kernel.dtype)
    fade = jnp.exp(before.largest - sums.largest)[..., None]
    return sums, fade * mean + _einsum("rtv,dv->rtd", weights, part.kernel)

  none = _no_sums(target), jnp.zeros(hidden.shape, jnp.float32)
  own, mean = _over_vocab(block, kernel, add, none)
  sums = own.over_shards()
  mean *= (jnp.exp(own.largest - sums.largest) / sums.total)[..., None]
  # The shard that has the target's column gives it.
  at = target - _first_id(kernel)
  here = (at >= 0) & (at < kernel.shape[1])
  column = jnp.take(kernel, at, axis=1, mode="clip")
  column = jnp.moveaxis(column, 0, -1).astype(jnp.float32)
  column *= _slope(sums.at_target[..., None], softcap)
  pull = jnp.where(here[..., None], column, 0.0) - mean
  return sums.logp, sharding.sum_over("vocab", pull).astype(hidden.dtype)


def _grads(
  block: int,
  softcap: float,
  hidden: Array,
  kernel: Array,
  target: Array,
  largest: Array,
  total: Array,
  grad: Array,
) -> tuple[Array, Array]:
  """Of the hidden states and of the kernel."""

  def back(kept: tuple[Array, Array], part: _Part) -> tuple[Array, Array]:
    hidden_grad, kernel_grad = kept
    logits = part.logits(hidden, softcap)
    # Not exp(logits - log_sum): the sum would round them alike.
    probs = jnp.exp(logits - largest[..., None]) / total[..., None]
    logits_grad = grad[..., None] * (part.hit(target) - probs)
    # Products in the compute dtype, sums in float32.
    logits_grad = (logits_grad * _slope(logits, softcap)).astype(kernel.dtype)
    hidden_grad += _einsum("rtv,dv->rtd", logits_grad, part.kernel)
    here = _einsum("rtd,rtv->dv", hidden, logits_grad)
    # Summed over rows block by block: no device holds the whole gradient.
    here = sharding.sum_rows_into("embed", here)
    return hidden_grad, part.add_to(kernel_grad, here.astype(kernel.dtype))

  none = (
    jnp.zeros(hidden.shape, jnp.float32),
    jnp.zeros(
      (kernel.shape[0] // sharding.shards("embed"), kernel.shape[1]),
      kernel.dtype,
    ),
  )
  hidden_grad, kernel_grad = _over_vocab(block, kernel, back, none)
  hidden_grad = sharding.sum_over("vocab", hidden_grad)
  # Else libtpu 0.0.52 tries to move the sums over rows out of a loop over
  # micro-batches, and fails (while_loop_all_reduce_code_motion.cc).
  kernel_grad = jax.lax.optimization_barrier(kernel_grad)
  return hidden_grad.astype(hidden.dtype), kernel_grad


class _Part(NamedTuple):
  """Some columns of the kernel."""

  kernel: Array  # [embed, size]
  start: Array  # the first of them, in this shard
  ids: Array  # [size]; -1 for those that the part before had too

  def logits(
    self, hidden: Array, softcap: float
  ) -> Float32[Array, "rows tokens size"]:
    """-inf for those that the part before had."""
    logits = _einsum("rtd,dv->rtv", hidden, self.kernel)
    if softcap:
      logits = softcap * jnp.tanh(logits / softcap)
    return jnp.where(self.ids[None, None] >= 0, logits, -jnp.inf)

  def hit(self, target: Array) -> Array:
    """Whether each entry of the logits is the target's."""
    return target[..., None] == self.ids[None, None]

  def add_to(self, whole: Array, columns: Array) -> Array:
    old = jax.lax.dynamic_slice_in_dim(whole, self.start, len(self.ids), 1)
    return jax.lax.dynamic_update_slice_in_dim(
      whole, old + columns, self.start, 1
    )


def _over_vocab(
  block: int, kernel: Array, add: Callable[[Kept, _Part], Kept], kept: Kept
) -> Kept:
  """Goes over the shard's vocabulary in parts of one size.

  The last one reaches back into the one before, so that nothing is padded.
  """
  vocab = kernel.shape[1]
  parts = max(1, -(-vocab // block))
  size = -(-vocab // parts)

  def one(k: Array, kept: Kept) -> Kept:
    start = jnp.minimum(k * size, vocab - size)
    columns = jax.lax.dynamic_slice_in_dim(kernel, start, size, 1)
    numbers = start + jnp.arange(size)
    ids = jnp.where(numbers >= k * size, numbers + _first_id(kernel), -1)
    return add(kept, _Part(columns, start, ids))

  return jax.lax.fori_loop(0, parts, one, kept)


def _first_id(kernel: Array) -> Array | int:
  """The id of the shard's first column."""
  return sharding.shard("vocab") * kernel.shape[1]


def _slope(logits: Array, softcap: float) -> Array | float:
  """Of the cap, by what comes out of it."""
  if not softcap:
    return 1.0
  # -inf stands for entries that do not count.
  return jnp.where(
    jnp.isfinite(logits), 1.0 - jnp.square(logits / softcap), 0.0
  )


_einsum: Callable[..., Array] = functools.partial(
  jnp.einsum, preferred_element_type=jnp.float32
)
