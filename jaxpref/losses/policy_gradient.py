"""Policy gradients of sampled responses: PPO, REINFORCE, RLOO.

`old_token_logp`, `ref_token_logp` and `advantage` are constants: the caller
stops their gradients. Losses of tokens are 0 outside of `mask`, and a loop
divides their sum by the number of tokens in it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref.losses.advantages import gae, token_rewards
from jaxpref.losses.ratios import clip_surrogate, sum_where
from jaxpref.losses.registry import loss
from jaxpref.types import Scalar, check_range


@loss("token")
def ppo_clip(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
) -> Float32[Array, "*sequences tokens"]:
  """Clipped policy loss of each token (PPO).

      loss = -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A),   ρ = π / π_old

  Use: with a value model, whose advantages (`gae`) are each token's own.

  The mean over all tokens of a batch is the paper's. ρ is exact up to e^20 and
  its tangent above, where a float32 would overflow.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    advantage: of each token.
    mask: which tokens the policy wrote.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per token, 0 outside of the mask; -A where policies agree.

  Reference: Schulman et al. 2017, eq. 7 (https://arxiv.org/abs/1707.06347).

  >>> old, a = jnp.array([[-0.7]]), jnp.array([[0.5]])
  >>> f"{ppo_clip(old + 0.1, old, a, a > 0)[0, 0]:.4f}"
  '-0.5526'
  """
  check_range("epsilon_low", epsilon_low, 0.0, 1.0 + 1e-6)
  logratio = jnp.where(mask, token_logp - old_token_logp, 0.0)
  per_token = clip_surrogate(
    logratio,
    jnp.where(mask, advantage, 0.0),
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )
  return jnp.where(mask, per_token, 0.0)


@loss("token")
def value_clip(
  value: Float32[Array, "*sequences tokens"],
  old_value: Float32[Array, "*sequences tokens"],
  returns: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon: Scalar = 0.2,
) -> Float32[Array, "*sequences tokens"]:
  """Squared error of the value model of each token, clipped as PPO's policy.

      loss = max((V - G)², (clip(V, V_old - ε, V_old + ε) - G)²) / 2

  Use: to train PPO's value model; multiply by about 0.1 beside `ppo_clip`.

  Args:
    value: the value model's estimate before each token.
    old_value: the same when the response was sampled.
    returns: G, what it should have been: `gae` plus `old_value`.
    mask: which tokens the policy wrote.
    epsilon: how far the estimate may move, on the rewards' scale.

  Returns: one loss per token, 0 outside of the mask and where V = G = V_old.

  Reference: the code of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593),
  also for 0.2 and 0.1. The paper of PPO does not clip values.

  >>> v, old, g = (jnp.array([[x]]) for x in (0.5, 0.2, 0.9))
  >>> f"{value_clip(v, old, g, g > 0)[0, 0]:.4f}"
  '0.1250'
  """
  value, old_value, returns = (
    jnp.where(mask, each, 0.0) for each in (value, old_value, returns)
  )
  clipped = jnp.clip(value, old_value - epsilon, old_value + epsilon)
  worse = jnp.maximum((value - returns) ** 2, (clipped - returns) ** 2)
  return 0.5 * worse


@loss("token")
def ppo_pairwise(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  ref_token_logp: Float32[Array, "*sequences tokens"],
  value: Float32[Array, "*sequences tokens"],
  old_value: Float32[Array, "*sequences tokens"],
  win_probability: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  beta: Scalar = 0.05,
  gamma: Scalar = 1.0,
  lam: Scalar = 0.95,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
  value_epsilon: Scalar = 0.2,
  value_weight: Scalar = 0.1,
) -> Float32[Array, "*sequences tokens"]:
  """PPO, whole, for the probability of beating a known answer.

      r_t  = -beta (log π_old - log π_ref)_t, plus P(win) at the last token
      A    = gae(r, V_old),   G = A + V_old
      loss = ppo_clip(A) + c value_clip(V, V_old, G)

  Use: with a judge instead of a reward model: each response is compared with a
  good answer to its own prompt (`judge_preference`), so that 0.5 means as good
  as that one on every prompt and no scale needs to be learned.

  The mean over all tokens of a batch is the objective. Advantages are not
  whitened, which would take the batch; ratios are bounded as in `ppo_clip`.
  Any other reward of whole responses may be passed as well.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    ref_token_logp: the same under the reference.
    value: the value model's estimate before each token.
    old_value: the same when the response was sampled.
    win_probability: of each response against its prompt's known answer.
    mask: which tokens the policy wrote.
    beta: strength of the pull towards the reference, inside the reward.
    gamma: γ of `gae`.
    lam: λ of `gae`.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.
    value_epsilon: how far the value model may move.
    value_weight: c.

  Returns: one loss per token, 0 outside of the mask; -A + c A² / 2 where
  nothing has moved since sampling.

  Reference: Xu et al. 2025 (https://arxiv.org/abs/2504.04950). Their settings
  are not public; these are PPO's usual ones. Not P3O (2310.00212), which
  compares samples with each other.

  >>> x, old, v = (jnp.array([[x]]) for x in (-0.6, -0.7, 0.5))
  >>> f"{ppo_pairwise(x, old, old, v, v, jnp.array([0.7]), v > 0)[0, 0]:.4f}"
  '-0.2190'
  """
  rewards = token_rewards(
    win_probability, old_token_logp, ref_token_logp, mask, beta=beta
  )
  advantage = gae(rewards, old_value, mask, gamma=gamma, lam=lam)
  policy = ppo_clip(
    token_logp,
    old_token_logp,
    advantage,
    mask,
    epsilon_low=epsilon_low,
    epsilon_high=epsilon_high,
  )
  returns = advantage + old_value
  error = value_clip(value, old_value, returns, mask, epsilon=value_epsilon)
  return policy + value_weight * error


@loss("sequence")
def reinforce(
  token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
) -> Float32[Array, "*sequences"]:
  """The plain policy gradient of each response.

      loss = -A Σ_t log π_t

  Use: on samples of the policy as it is. With the advantages of `leave_one_out`
  it is RLOO as its paper has it.

  Args:
    token_logp: log-probability of each response token, in nats.
    advantage: of each response.
    mask: which tokens the policy wrote.

  Returns: one loss per response, 0 of no token. Its gradient, not its value,
  means something.

  Reference: Williams 1992; Ahmadian et al. 2024
  (https://arxiv.org/abs/2402.14740). TRL's RLOO is `rloo`: clipped ratios.

  >>> logp, a = jnp.array([[-0.5, -1.0]]), jnp.array([0.5])
  >>> f"{reinforce(logp, a, logp < 0)[0]:.4f}"
  '0.7500'
  """
  advantage = jnp.where(jnp.any(mask, axis=-1), advantage, 0.0)
  return -advantage * sum_where(token_logp, mask)


@loss("sequence")
def reinforce_kl(
  token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences tokens"],
  token_kl: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  beta: Scalar = 0.1,
) -> Float32[Array, "*sequences"]:
  """The plain policy gradient beside the exact divergence of each token.

      loss = Σ_t beta KL_t - (1 - beta) A_t log π_t

  Use: where the whole distribution of each token is at hand: its divergence is
  a term with a gradient of its own instead of a noisy price in the reward.

  The mean over responses is the paper's: tokens are summed. The mix means that
  beta / (1 - beta) is the strength which other methods call beta.

  Args:
    token_logp: log-probability of each response token, in nats.
    advantage: reward to come less the estimated value, of each token.
    token_kl: divergence of each token, with its gradient (`kl_exact`).
    mask: which tokens the policy wrote.
    beta: α of the paper, from 0 to 1: the share of the divergence. The paper
      does not print its value; 0.1 is ours.

  Returns: one loss per response, 0 of no token.

  Reference: Cideron et al. 2024 (https://arxiv.org/abs/2402.04229).

  >>> x, kl = jnp.array([[-0.5, -1.0]]), jnp.array([[0.1, 0.2]])
  >>> f"{reinforce_kl(x, -x, kl, x < 0)[0]:.4f}"
  '1.1550'
  """
  check_range("beta", beta, 0.0, 1.0 + 1e-6)
  token_logp, advantage, token_kl = (
    jnp.where(mask, each, 0.0) for each in (token_logp, advantage, token_kl)
  )
  gain = (1.0 - beta) * advantage * token_logp - beta * token_kl
  return -jnp.sum(gain, axis=-1)


@loss("sequence")
def rloo(
  token_logp: Float32[Array, "*sequences tokens"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  advantage: Float32[Array, "*sequences"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon_low: Scalar = 0.2,
  epsilon_high: Scalar = 0.2,
) -> Float32[Array, "*sequences"]:
  """Clipped policy loss of whole responses against the others of their prompt.

      loss = -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A)
      ρ    = π(y|x) / π_old(y|x), over the whole response

  Use: without a value model, where a response is one action. Advantages are
  those of `leave_one_out`; the pull towards the reference belongs into the
  reward (less beta times the response's log-ratio).

  The mean over responses is the objective. ρ is exact up to e^20 and its
  tangent above.

  Args:
    token_logp: log-probability of each response token, in nats.
    old_token_logp: the same when the response was sampled.
    advantage: of each response.
    mask: which tokens the policy wrote.
    epsilon_low: how far below 1 the ratio may fall.
    epsilon_high: how far above 1 the ratio may rise.

  Returns: one loss per response; -A where policies agree, 0 of no token.

  Reference: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740). The paper
  has no ratio (`reinforce`); this is the form of TRL.

  >>> old, a = jnp.array([[-0.7, -1.1]]), jnp.array([0.5])
  >>> f"{rloo(old + 0.05, old, a, old < 0)[0]:.4f}"
  '-0.5526'
  """
  logratio = sum_where(token_logp - old_token_logp, mask)
  advantage = jnp.where(jnp.any(mask, axis=-1), advantage, 0.0)
  return clip_surrogate(
    logratio, advantage, epsilon_low=epsilon_low, epsilon_high=epsilon_high
  )
