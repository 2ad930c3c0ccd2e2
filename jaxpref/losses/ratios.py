"""What policy-gradient losses share: masks, ratios of probabilities, clipping.

Padding may hold anything, also NaN: it is replaced before it is used, so that
it reaches neither a value nor a gradient.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.types import Scalar, checked

LARGEST_EXPONENT = 20.0
"""Where `bounded_exp` leaves exp: probabilities 5e8 times apart."""


@checked
def bounded_exp(exponent: Float32[Array, "*dims"]) -> Float32[Array, "*dims"]:
  """The exponential up to 20, and its tangent from there on.

      e^x up to x = 20;   e^20 (1 + x - 20) above

  Use: for ratios of probabilities, which overflow where two models disagree on
  a whole sequence. Value and gradient stay finite and of the right sign.

  Args:
    exponent: a log-ratio of probabilities, in nats.

  Returns: one value per entry; 1 where the models agree.

  >>> f"{bounded_exp(jnp.array([0.1]))[0]:.4f}"
  '1.1052'
  """
  above = jnp.maximum(exponent - LARGEST_EXPONENT, 0.0)
  return jnp.exp(jnp.minimum(exponent, LARGEST_EXPONENT)) * (1.0 + above)


@checked
def clip_surrogate(
  logratio: Float32[Array, "*dims"],
  advantage: Float32[Array, "*dims"],
  *,
  epsilon_low: Scalar,
  epsilon_high: Scalar,
) -> Float32[Array, "*dims"]:
  """The clipped objective of PPO, as a loss, per entry.

      loss = -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A),   ρ = e^logratio

  Use: to build a policy gradient whose steps end where the ratio has gone far
  enough. Far enough only counts in the direction that the advantage rewards.

  Args:
    logratio: log π - log π_old of an action, in nats.
    advantage: how much better the action was than expected; a constant.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per entry; -A where the policies agree.

  >>> a = jnp.array([1.0])
  >>> f"{clip_surrogate(a, a, epsilon_low=0.2, epsilon_high=0.2)[0]:.4f}"
  '-1.2000'
  """
  ratio = bounded_exp(logratio)
  clipped = jnp.clip(ratio, 1.0 - epsilon_low, 1.0 + epsilon_high)
  return -jnp.minimum(ratio * advantage, clipped * advantage)


@checked
def sum_where(
  x: Float32[Array, "*rows items"], mask: Bool[Array, "*rows items"]
) -> Float32[Array, "*rows"]:
  """Sum over the trailing axis of the entries that `mask` keeps."""
  return jnp.sum(jnp.where(mask, x, 0.0), axis=-1)


@checked
def mean_where(
  x: Float32[Array, "*rows items"], mask: Bool[Array, "*rows items"]
) -> Float32[Array, "*rows"]:
  """Mean over the trailing axis of the entries that `mask` keeps; 0 of none."""
  count = jnp.sum(mask, axis=-1, dtype=jnp.float32)
  return sum_where(x, mask) / jnp.maximum(count, 1.0)
