"""The divergence of the policy from the reference, estimated or exact.

Estimates are of KL(π‖π_ref), from tokens that π itself has sampled. As values
k1 and k3 are right on average, k2 is not. As a term of a loss `kl_exact` has
the gradient of the divergence, k2 has it on average; k1's is zero on average,
k3's is of another divergence.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref.losses.ratios import bounded_exp
from jaxpref.types import checked


@checked
def kl_k1(
  token_logp: Float32[Array, "*tokens"],
  ref_token_logp: Float32[Array, "*tokens"],
) -> Float32[Array, "*tokens"]:
  """The plain estimate of the divergence of each token.

      k1 = log π - log π_ref

  Use: as a penalty inside the reward. Unbiased, of either sign, noisy.

  Args:
    token_logp: log-probability of each sampled token, in nats.
    ref_token_logp: the same under the reference.

  Returns: one value per token; 0 where the models agree.

  Reference: Schulman 2020 (http://joschu.net/blog/kl-approx.html).

  >>> f"{kl_k1(jnp.array([-0.5]), jnp.array([-0.7]))[0]:.4f}"
  '0.2000'
  """
  return token_logp - ref_token_logp


@checked
def kl_k2(
  token_logp: Float32[Array, "*tokens"],
  ref_token_logp: Float32[Array, "*tokens"],
) -> Float32[Array, "*tokens"]:
  """Half the squared log-ratio: a low-variance estimate of the divergence.

      k2 = (log π - log π_ref)² / 2

  Use: to watch the divergence, or as a term of a loss: its gradient is that of
  the divergence on average.

  Args: as in `kl_k1`.

  Returns: one value per token; 0 where the models agree. Biased where they are
  far apart.

  Reference: Schulman 2020 (http://joschu.net/blog/kl-approx.html).

  >>> f"{kl_k2(jnp.array([-0.5]), jnp.array([-0.7]))[0]:.4f}"
  '0.0200'
  """
  return 0.5 * (token_logp - ref_token_logp) ** 2


@checked
def kl_k3(
  token_logp: Float32[Array, "*tokens"],
  ref_token_logp: Float32[Array, "*tokens"],
) -> Float32[Array, "*tokens"]:
  """An unbiased estimate of the divergence that is never negative.

      k3 = e^d - d - 1,   d = log π_ref - log π

  Use: what GRPO adds to its loss. Its gradient there is that of the reverse
  divergence KL(π_ref‖π), not of the one that it estimates.

  The exponential goes on as a straight line above d = 20 (`bounded_exp`).

  Args: as in `kl_k1`.

  Returns: one value per token; 0 where the models agree.

  Reference: Schulman 2020 (http://joschu.net/blog/kl-approx.html); Shao et al.
  2024, eq. 4 (https://arxiv.org/abs/2402.03300).

  >>> f"{kl_k3(jnp.array([-0.5]), jnp.array([-0.7]))[0]:.4f}"
  '0.0187'
  """
  logratio = ref_token_logp - token_logp
  # expm1 near zero, where e^d - 1 would lose what is left after d is taken.
  near = jnp.abs(logratio) < 1.0
  small = jnp.expm1(jnp.where(near, logratio, 0.0))
  large = bounded_exp(jnp.where(near, 0.0, logratio)) - 1.0
  return jnp.where(near, small, large) - logratio


@checked
def kl_exact(
  logp: Float32[Array, "*tokens vocab"],
  ref_logp: Float32[Array, "*tokens vocab"],
) -> Float32[Array, "*tokens"]:
  """The divergence of each token's distribution, summed over the vocabulary.

      KL = Σ_a π(a) (log π(a) - log π_ref(a))

  Use: where both distributions are at hand: no noise, and the gradient is that
  of the divergence.

  Args:
    logp: log-probability of every token of the vocabulary, in nats; -inf where
      it cannot be chosen.
    ref_logp: the same under the reference.

  Returns: one value per position; 0 where the distributions agree.

  Reference: Cideron et al. 2024 (https://arxiv.org/abs/2402.04229), who print
  the sum without the weight π(a), which is not bounded below; this is the
  divergence that they name.

  >>> half = jnp.log(jnp.array([[0.5, 0.5]]))
  >>> f"{kl_exact(jnp.log(jnp.array([[0.9, 0.1]])), half)[0]:.4f}"
  '0.3681'
  """
  possible = logp > -jnp.inf  # else 0 * (-inf - -inf) is NaN
  logp = jnp.where(possible, logp, 0.0)
  logratio = logp - jnp.where(possible, ref_logp, 0.0)
  return jnp.sum(jnp.where(possible, jnp.exp(logp) * logratio, 0.0), axis=-1)
