"""DPO with other divergences from the reference than the reverse KL.

With u = π(y|x) / π_ref(y|x), the implicit reward of a response under an
f-divergence is beta f'(u); constants cancel in a pair. The reverse KL,
f'(u) = log u, is `dpo`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar

# Exponents stop here, with no gradient, since e^88.8 overflows float32.
_LARGEST = 80.0


@loss("pair")
def dpo_forward_kl(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """DPO under the forward KL divergence, KL(π_ref ‖ π).

      loss = -log σ(beta (e^-rejected - e^-chosen))

  Use: where the policy should keep every kind of answer the reference gives:
  it pays without end for making one of them impossible.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log 2 where policy and reference agree. Below a
  log-ratio of -80 a response has no gradient, since e^88.8 overflows.

  Reference: Wang et al. 2023 (https://arxiv.org/abs/2309.16240). TRL 1.16's
  f_divergence_type='forward_kl', which overflows instead.

  >>> f"{dpo_forward_kl(jnp.array([1.0]), jnp.array([-1.0]))[0]:.4f}"
  '0.5825'
  """
  chosen, rejected = _expm1(-chosen_logratio), _expm1(-rejected_logratio)
  return -jax.nn.log_sigmoid(beta * (rejected - chosen))


@loss("pair")
def dpo_jensen_shannon(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """DPO under the Jensen-Shannon divergence.

      loss = -log σ(beta (log σ(chosen) - log σ(rejected)))

  Use: between both KL divergences, for more varied answers than DPO gives. A
  chosen response gains little from becoming likelier than the reference has
  it; a rejected one loses as under DPO.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.

  Returns: one loss per pair; log 2 where policy and reference agree.

  Reference: Wang et al. 2023 (https://arxiv.org/abs/2309.16240), where
  f'(u) = log(2u / (1 + u)). TRL 1.16's f_divergence_type='js_divergence'.

  >>> f"{dpo_jensen_shannon(jnp.array([1.0]), jnp.array([-1.0]))[0]:.4f}"
  '0.6444'
  """
  chosen = jax.nn.log_sigmoid(chosen_logratio)
  rejected = jax.nn.log_sigmoid(rejected_logratio)
  return -jax.nn.log_sigmoid(beta * (chosen - rejected))


@loss("pair")
def dpo_alpha(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
  alpha: Scalar = 0.5,
) -> Float32[Array, "*pairs"]:
  """DPO under an alpha divergence, between the reverse and the forward KL.

      loss = -log σ(beta (g(chosen) - g(rejected))),
      g(x) = (e^((alpha - 1) x) - 1) / (alpha - 1)

  Use: to tune how much variety the policy keeps: an alpha of 1 is `dpo`, of 0
  `dpo_forward_kl`.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer.
    alpha: TRL 1.16's f_alpha_divergence_coef: 1 minus the alpha of the paper,
      and 1 minus the coefficient of TRL 0.19.

  Returns: one loss per pair; log 2 where policy and reference agree. Where
  (alpha - 1) x exceeds 80 a response has no gradient, since e^88.8 overflows.

  Reference: Wang et al. 2023 (https://arxiv.org/abs/2309.16240), where
  f'(u) = (1 - u^-α) / α.

  >>> f"{dpo_alpha(jnp.array([1.0]), jnp.array([-1.0]))[0]:.4f}"
  '0.5943'
  """
  margin = _alpha_reward(chosen_logratio, alpha) - _alpha_reward(
    rejected_logratio, alpha
  )
  return -jax.nn.log_sigmoid(beta * margin)


def _alpha_reward(logratio: Array, alpha: Scalar) -> Array:
  power = jnp.asarray(alpha, jnp.float32) - 1.0
  # The limit at 1 is taken apart; a plain division would be 0 / 0 there, and
  # its gradient NaN even where it is not chosen.
  near = jnp.abs(power) < 1e-6
  divisor = jnp.where(near, 1.0, power)
  return jnp.where(near, logratio, _expm1(power * logratio) / divisor)


def _expm1(x: Array) -> Array:
  return jnp.expm1(jnp.minimum(x, _LARGEST))
