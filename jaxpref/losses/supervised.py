"""Likelihood losses, which need no comparison."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, sum_valid


@loss("token")
def sft(
  token_logp: Float32[Array, "*tokens"],
) -> Float32[Array, "*tokens"]:
  """Negative log-likelihood of each response token (supervised fine-tuning).

      loss = -log π(y_t | x, y_<t)

  Use: before learning from preferences, on answers worth imitating.

  Args:
    token_logp: log-probability of each response token, in nats.

  Returns: one loss per token; its mean over tokens is the cross-entropy.
  """
  return -token_logp


@loss("token", coupled=True)
def c_rlft(
  token_logp: Float32[Array, "*sequences tokens"],
  desirable: Bool[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  undesirable_weight: Scalar = 0.1,
) -> Float32[Array, "*sequences tokens"]:
  """Class-conditioned, weighted negative log-likelihood of each token.

      loss = -w / mean(w) · log π(y_t | x, class, y_<t)
      w = 1 if desirable, undesirable_weight otherwise

  Use: for fine-tuning on answers of two sources, a good one and a large one.
  Both are learned, each under its own prompt (the class is part of x, and the
  good class is asked for afterwards), and the good one weighs more.

  The mean of w runs over the response tokens of the whole step, so that the
  losses' mean is the weighted mean of the cross-entropy: only the ratio of the
  two weights matters, and a batch of one class learns at full strength.

  Args:
    token_logp: log-probability of each token, in nats.
    desirable: whether the sequence is of the good source.
    mask: which tokens are of the response; the others are 0.
    undesirable_weight: weight of the other source's tokens. The paper derives
      exp((r - 1) / beta), r = 0.1; its authors' code uses 0.1, which would be
      beta = 0.39.

  Returns: one loss per token; the cross-entropy where all are of one source.

  Reference: Wang et al. 2023 (https://arxiv.org/abs/2309.11235), as in
  https://github.com/imoneoi/openchat.

  >>> logp, real = jnp.array([[-1.0], [-2.0]]), jnp.array([[True], [True]])
  >>> f"{c_rlft(logp, jnp.array([True, False]), real).mean():.4f}"
  '1.0909'
  """
  weight = jnp.where(desirable, 1.0, undesirable_weight)[..., None]
  weight = jnp.broadcast_to(weight, mask.shape)
  nll = -jnp.where(mask, token_logp, 0.0)
  return nll * _over_mean(weight, mask)


@loss("sequence", coupled=True)
def c_rlft_sequence(
  token_logp: Float32[Array, "*sequences tokens"],
  desirable: Bool[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  undesirable_weight: Scalar = 0.1,
) -> Float32[Array, "*sequences"]:
  """Class-conditioned, weighted negative log-likelihood of each sequence.

      loss = -w / mean(w) · mean over tokens of log π(y_t | x, class, y_<t)
      w = 1 if desirable, undesirable_weight otherwise

  Use: like `c_rlft`, where a long answer shall count no more than a short one.

  The mean of w runs over the sequences of the whole step that have a response
  token.

  Args:
    token_logp: log-probability of each token, in nats.
    desirable: whether the sequence is of the good source.
    mask: which tokens are of the response.
    undesirable_weight: weight of the other source's sequences.

  Returns: one loss per sequence; its cross-entropy where all are of one
    source, 0 where it has no response token.

  Reference: https://github.com/imoneoi/openchat, its per-sequence loss; Wang
  et al. 2023 (https://arxiv.org/abs/2309.11235).

  >>> logp, real = jnp.array([[-1.0], [-2.0]]), jnp.array([[True], [True]])
  >>> good = jnp.array([True, False])
  >>> f"{c_rlft_sequence(logp, good, real).mean():.4f}"
  '1.0909'
  """
  length = jnp.sum(mask, axis=-1, dtype=jnp.float32)
  nll = -jnp.sum(jnp.where(mask, token_logp, 0.0), axis=-1)
  weight = jnp.where(desirable, 1.0, undesirable_weight)
  weight = weight.astype(jnp.float32)
  return nll / jnp.maximum(length, 1.0) * _over_mean(weight, length > 0)


def _over_mean(weight: Array, valid: Array) -> Array:
  """Weights whose mean over the valid entries is 1."""
  total, count = sum_valid(weight.astype(jnp.float32), valid)
  return jnp.where(valid, weight * count / jnp.where(count > 0, total, 1.0), 0)
