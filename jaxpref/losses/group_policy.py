"""Policy gradients by comparison within a group of samples: GRPO's family.

Advantages come from `group_advantage` or `group_centered`, one a response.
They, `old_token_logp` and `ref_token_logp` are constants: the caller stops
their gradients. What the members differ in is the ratio (of a token or of a
response), the clipping, and what the sum over tokens is divided by.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.kl import kl_k3
from jaxpref.losses.policy_gradient import ppo_clip
from jaxpref.losses.ratios import clip_surrogate, mean_where
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar


@loss("sequence")
def grpo(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  ref_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  beta: Scalar = 0.04,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
) -> Float32[Array, "*sequences"]:
  """Group relative policy optimization loss of each response.

      loss = mean over tokens of -min(ρ A, clip(ρ) A) + beta k3
      ρ = π / π_old,   k3 = e^d - d - 1,   d = log π_ref - log π

  Use: for rewards that can be checked, without a value model: a response is
  measured against the others of its prompt (`group_advantage`).

  The mean over responses is the paper's: each counts the same, so a token of a
  long one counts less. Exponentials are exact up to e^20, their tangent above.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    ref_token_logp: the same under the reference.
    advantage: of each response.
    mask: which tokens the policy wrote.
    beta: strength of the pull towards the reference.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per response; -A where all policies agree, 0 of no token.

  Reference: Shao et al. 2024, eq. 3 (https://arxiv.org/abs/2402.03300), whose
  beta is 0.04; ε is PPO's. TRL 1.16 has beta 0 by default, and divides as
  `dapo` does.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{grpo(old + 0.1, old, old, a, old < 0)[0]:.4f}"
  '-0.5524'
  """
  policy = ppo_clip(
    token_logp,
    old_token_logp,
    _of_each_token(advantage, mask),
    mask,
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )
  pull = kl_k3(
    jnp.where(mask, token_logp, 0.0), jnp.where(mask, ref_token_logp, 0.0)
  )
  return mean_where(policy + beta * pull, mask)


@loss("sequence")
def grpo_s(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  ref_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  difficulty: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  beta: Scalar = 0.04,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
) -> Float32[Array, "*sequences"]:
  """GRPO whose advantages are scaled by the difficulty of their prompt.

      loss = grpo(advantage = difficulty A)

  Use: where some prompts are much harder than others, and should count more.

  Scaling rewards instead would do nothing: the group's deviation cancels it.
  The scale must be one for all samples of a prompt, or their advantages would
  no longer sum to 0.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    ref_token_logp: the same under the reference.
    advantage: of each response, before it is scaled.
    difficulty: of each response's prompt (`data_hardness` times
      `model_responsiveness`).
    mask: which tokens the policy wrote.
    beta: strength of the pull towards the reference.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per response; -difficulty A where all policies agree.

  Reference: Cheng et al. 2025, DR-IRL (https://arxiv.org/abs/2503.18991); what
  it leaves open is as in `grpo`.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{grpo_s(old, old, old, a, 2.0 * a, old < 0)[0]:.4f}"
  '-0.5000'
  """
  return grpo(
    token_logp,
    old_token_logp,
    ref_token_logp,
    difficulty * advantage,
    mask,
    beta=beta,
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )


@loss("sequence")
def dr_grpo(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  max_tokens: Scalar = 3000,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
) -> Float32[Array, "*sequences"]:
  """GRPO without its biases towards long wrong and short right answers.

      loss = Σ_t -min(ρ A, clip(ρ) A) / max_tokens,   ρ = π / π_old

  Use: in place of `grpo` where responses grow without getting better. Take
  advantages of `group_centered`, which do not divide by the deviation.

  The mean over responses is the paper's: every token of a batch is divided by
  the same constant, as in the authors' code; the equation prints the sum. There
  is no pull towards a reference.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    advantage: of each response.
    mask: which tokens the policy wrote.
    max_tokens: the longest response that sampling allows: a constant of the
      run, not of the batch. 3000 is that of the authors' runs.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per response; -A tokens / max_tokens where policies agree.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2503.20783); ε is PPO's.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{dr_grpo(old + 0.1, old, a, old < 0, max_tokens=4)[0]:.4f}"
  '-0.2763'
  """
  policy = ppo_clip(
    token_logp,
    old_token_logp,
    _of_each_token(advantage, mask),
    mask,
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )
  return jnp.sum(policy, axis=-1) / max_tokens


@loss("token")
def dapo(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.28,
) -> Float32[Array, "*sequences tokens"]:
  """GRPO by tokens, with more room upwards (DAPO), of each token.

      loss = -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A),   ρ = π / π_old

  Use: for long chains of thought: a token counts the same in long and short
  responses, and rare tokens can become likely before the clipping stops them.

  The mean over all tokens of a batch is the authors' code's; the equation takes
  that of each prompt's tokens, then of prompts. The paper's other parts are
  functions here: `group_informative` (sample other prompts instead of those
  without a signal) and `overlong_penalty`. There is no pull towards a
  reference.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    advantage: of each response (`group_advantage`).
    mask: which tokens the policy wrote.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per token, 0 outside of the mask; -A where policies agree.

  Reference: Yu et al. 2025, eq. 8 (https://arxiv.org/abs/2503.14476). TRL 1.16
  divides so by default, but clips at 0.2 both ways.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{dapo(old + 0.3, old, a, old < 0)[0, 0]:.4f}"
  '-0.6400'
  """
  return ppo_clip(
    token_logp,
    old_token_logp,
    _of_each_token(advantage, mask),
    mask,
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )


@loss("sequence")
def gspo(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon_low: Scalar = 3e-4,
  epsilon_high: Scalar = 4e-4,
) -> Float32[Array, "*sequences"]:
  """Group policy loss with one ratio a response (GSPO).

      loss = -min(s A, clip(s, 1 - ε_low, 1 + ε_high) A)
      s    = exp(mean over tokens of log π - log π_old)

  Use: for mixtures of experts and long responses, where ratios of single tokens
  are noise: a response is clipped as a whole.

  The mean over responses is the paper's. s is exact up to e^20, its tangent
  above.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    advantage: of each response (`group_advantage`).
    mask: which tokens the policy wrote.
    epsilon_low: how far below 1 the ratio may fall. Much less than for ratios
      of tokens, as s is near 1.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per response; -A where policies agree, 0 of no token.

  Reference: Zheng et al. 2025, eq. 5 (https://arxiv.org/abs/2507.18071), whose
  bounds these are. TRL 1.16 clips at 0.2 unless told otherwise.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{gspo(old + 0.1, old, -a, old < 0)[0]:.4f}"
  '0.5526'
  """
  logratio = mean_where(token_logp - old_token_logp, mask)
  advantage = jnp.where(jnp.any(mask, axis=-1), advantage, 0.0)
  return clip_surrogate(
    logratio, advantage, epsilon_low=epsilon_low, epsilon_high=epsilon_high
  )


def _of_each_token(
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
) -> Float32[Array, "*sequences tokens"]:
  return jnp.broadcast_to(advantage[..., None], mask.shape)
