"""The squared hinge, of the family of generalized preference optimization."""

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.registry import loss
from jaxpref.types import Scalar


@loss("pair")
def squared_hinge(
  chosen_logratio: Float32[Array, "*pairs"],
  rejected_logratio: Float32[Array, "*pairs"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*pairs"]:
  """Generalized preference optimization with the truncated quadratic.

      loss = max(0, 1 - m)²,   m = beta (chosen - rejected)

  Use: like `ipo_sum`, where a pair that is told apart further than the target
  should be left alone instead of being pulled back. Up to the target it is
  beta² times `ipo_sum` of half its beta.

  Args:
    chosen_logratio: log π(y|x) - log π_ref(y|x) of the preferred response,
      summed over its response tokens, in nats.
    rejected_logratio: the same for the other response.
    beta: strength of the pull towards the reference; larger stays closer;
      the default is ours.

  Returns: one loss per pair; 1 where policy and reference agree, and 0 with
  no gradient from a margin m of 1 on.

  Reference: Tang et al. 2024, table 1 (https://arxiv.org/abs/2402.05749).

  >>> f"{squared_hinge(jnp.array([2.0]), jnp.array([-1.0]), beta=0.1)[0]:.4f}"
  '0.4900'
  """
  margin = beta * (chosen_logratio - rejected_logratio)
  return jnp.maximum(0.0, 1.0 - margin) ** 2
