"""Rewards of sampled responses turned into advantages.

Groups are the samples of one prompt, along the trailing axis. Advantages are
constants to the losses that take them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxpref.losses.ratios import mean_where, sum_where
from jaxpref.types import Scalar, check_range, checked


@checked
def group_mean_std(
  reward: Float32[Array, "*groups items"],
  valid: Bool[Array, "*groups items"],
  *,
  ddof: Scalar = 1,
) -> tuple[Float32[Array, "*groups"], Float32[Array, "*groups"]]:
  """Mean and standard deviation of the rewards of each group.

      std = sqrt(Σ (reward - mean)² / (n - ddof))

  Use: as statistics of their own, or to scale rewards.

  Args:
    reward: of each sample of the group.
    valid: which samples there are.
    ddof: 1 for the deviation of a sample (torch), 0 of a population (NumPy).

  Returns: one mean and one deviation per group; 0 of no sample, and a deviation
  of 0 where n is not above ddof.
  """
  mean = mean_where(reward, valid)
  count = jnp.sum(valid, axis=-1, dtype=jnp.float32)
  deviation = jnp.where(valid, reward - mean[..., None], 0.0)
  free = count - ddof
  variance = jnp.sum(deviation**2, axis=-1) / jnp.where(free > 0.0, free, 1.0)
  variance = jnp.where(free > 0.0, variance, 0.0)
  # The gradient of a root at 0 is infinite.
  std = jnp.sqrt(jnp.where(variance > 0.0, variance, 1.0))
  return mean, jnp.where(variance > 0.0, std, 0.0)


@checked
def group_informative(
  reward: Float32[Array, "*groups items"],
  valid: Bool[Array, "*groups items"],
) -> Bool[Array, "*groups"]:
  """Which groups have rewards that differ, so that anything can be learned.

  Use: DAPO samples other prompts in place of the rest; by GRPO their advantages
  are 0.

  Args:
    reward: of each sample of the group.
    valid: which samples there are.

  Returns: one answer per group; False of a single sample.

  Reference: Yu et al. 2025, eq. 11 (https://arxiv.org/abs/2503.14476).

  >>> bool(group_informative(jnp.array([1.0, 1.0]), jnp.array([True, True])))
  False
  """
  low = jnp.min(jnp.where(valid, reward, jnp.inf), axis=-1)
  high = jnp.max(jnp.where(valid, reward, -jnp.inf), axis=-1)
  return high > low


@checked
def group_advantage(
  reward: Float32[Array, "*groups items"],
  valid: Bool[Array, "*groups items"],
  *,
  ddof: Scalar = 1,
  epsilon: Scalar = 1e-4,
) -> Float32[Array, "*groups items"]:
  """How many deviations a sample is better than its group (GRPO).

      A = (reward - mean) / (std + ε)

  Use: the advantage of GRPO, DAPO and GSPO. Every prompt weighs the same,
  however far its samples' rewards are apart.

  Scaling the rewards of a prompt does nothing here (to weigh prompts, scale the
  advantage); nor does adding to them.

  Args:
    reward: of each sample of the group.
    valid: which samples there are.
    ddof: 1 as TRL and verl have it; 0 is NumPy's deviation. Papers do not say.
    epsilon: ε, against groups of almost equal rewards; TRL's value.

  Returns: one advantage per sample; exactly 0 where all rewards are equal, and
  for what is not valid.

  Reference: Shao et al. 2024, section 4.1.2 (https://arxiv.org/abs/2402.03300).

  >>> a = group_advantage(jnp.array([1.0, 0.0]), jnp.array([True, True]))
  >>> f"{a[0]:.4f}"
  '0.7070'
  """
  reward = jnp.where(valid, reward, 0.0)
  mean, std = group_mean_std(reward, valid, ddof=ddof)
  scale = std + epsilon
  # Equal rewards differ from their rounded mean, which ε = 0 would blow up.
  some = group_informative(reward, valid) & (scale > 0.0)
  scaled = (reward - mean[..., None]) / jnp.where(some, scale, 1.0)[..., None]
  return jnp.where(valid & some[..., None], scaled, 0.0)


@checked
def group_centered(
  reward: Float32[Array, "*groups items"],
  valid: Bool[Array, "*groups items"],
) -> Float32[Array, "*groups items"]:
  """How much better a sample is than its group (Dr. GRPO).

      A = reward - mean

  Use: where dividing by the deviation would favour prompts that are almost
  always, or almost never, solved.

  Args:
    reward: of each sample of the group.
    valid: which samples there are.

  Returns: one advantage per sample; 0 for what is not valid.

  Reference: Liu et al. 2025 (https://arxiv.org/abs/2503.20783).

  >>> a = group_centered(jnp.array([1.0, 0.0]), jnp.array([True, True]))
  >>> f"{a[0]:.4f}"
  '0.5000'
  """
  reward = jnp.where(valid, reward, 0.0)
  mean = mean_where(reward, valid)
  return jnp.where(valid, reward - mean[..., None], 0.0)


@checked
def leave_one_out(
  reward: Float32[Array, "*groups items"],
  valid: Bool[Array, "*groups items"],
) -> Float32[Array, "*groups items"]:
  """How much better a sample is than the others of its group (RLOO).

      A = reward - mean of the others = n / (n - 1) (reward - mean)

  Use: the baseline of RLOO, which does not depend on the sample it judges, so
  that the gradient is unbiased.

  Args:
    reward: of each sample of the group, less its penalties.
    valid: which samples there are.

  Returns: one advantage per sample; 0 of a sample that is alone, and for what
  is not valid.

  Reference: Ahmadian et al. 2024 (https://arxiv.org/abs/2402.14740).

  >>> a = leave_one_out(jnp.array([1.0, 0.0]), jnp.array([True, True]))
  >>> f"{a[0]:.4f}"
  '1.0000'
  """
  count = jnp.sum(valid, axis=-1, dtype=jnp.float32)
  others = count / jnp.maximum(count - 1.0, 1.0)
  return others[..., None] * group_centered(reward, valid)


@checked
def overlong_penalty(
  length: Int32[Array, "*sequences"],
  *,
  max_tokens: Scalar = 20480,
  buffer: Scalar = 4096,
) -> Float32[Array, "*sequences"]:
  """What DAPO adds to the reward of a response that is about to be too long.

      0 up to max_tokens - buffer, down to -1 at max_tokens, -1 above

  Use: instead of a sudden penalty of what was cut, which is noise to a good
  answer that was only long.

  Args:
    length: tokens of each response.
    max_tokens: from where on the penalty is whole.
    buffer: over how many tokens before that it grows.

  Returns: one penalty per response, from 0 to -1.

  Reference: Yu et al. 2025, eq. 13 (https://arxiv.org/abs/2503.14476).

  >>> f"{overlong_penalty(jnp.array([18432]))[0]:.4f}"
  '-0.5000'
  """
  spare = (max_tokens - buffer) - length.astype(jnp.float32)
  return jnp.clip(spare / buffer, -1.0, 0.0)


@checked
def token_rewards(
  reward: Float32[Array, "*sequences"],
  old_token_logp: Float32[Array, "*sequences tokens"],
  ref_token_logp: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  beta: Scalar = 0.05,
) -> Float32[Array, "*sequences tokens"]:
  """A reward of each token: a price on leaving the reference, then the reward.

      r_t = -beta (log π_old - log π_ref)_t,   plus the reward at the last token

  Use: what PPO's `gae` takes, with the pull towards the reference inside.

  Args:
    reward: of each whole response.
    old_token_logp: log-probability of each token when it was sampled, in nats.
    ref_token_logp: the same under the reference.
    mask: which tokens there are.
    beta: strength of the pull towards the reference; 0.05 is TRL's.

  Returns: one reward per token, 0 outside of the mask. They sum to the reward
  less beta times the log-ratio of the response.

  Reference: Ouyang et al. 2022, eq. 2 (https://arxiv.org/abs/2203.02155).

  >>> logp = jnp.array([[-0.7, -1.1]])
  >>> r = token_rewards(jnp.ones(1), logp, logp - 0.2, logp < 0)
  >>> f"{r[0, 1]:.4f}"
  '0.9900'
  """
  price = jnp.where(mask, old_token_logp - ref_token_logp, 0.0)
  left = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  last = mask & (left == 1)
  return jnp.where(last, reward[..., None], 0.0) - beta * price


@checked
def gae(
  token_reward: Float32[Array, "*sequences tokens"],
  value: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  gamma: Scalar = 1.0,
  lam: Scalar = 0.95,
) -> Float32[Array, "*sequences tokens"]:
  """Generalised advantage estimate of each token.

      δ_t = r_t + γ V_{t+1} - V_t,   A_t = δ_t + γ λ A_{t+1}

  Use: PPO's advantages from a value model. Add `value` for the returns that
  the value model is to predict.

  Tokens outside of the mask are skipped: the next one in it comes next.

  Args:
    token_reward: of each token (`token_rewards`).
    value: the value model's estimate before each token.
    mask: which tokens there are; after the last one everything is 0.
    gamma: γ, the discount of a token.
    lam: λ, 0 trusts the value model, 1 only the rewards.

  Returns: one advantage per token, 0 outside of the mask.

  Reference: Schulman et al. 2015, eq. 16 (https://arxiv.org/abs/1506.02438).

  >>> r, v = jnp.array([[0.0, 1.0]]), jnp.array([[0.2, 0.3]])
  >>> f"{gae(r, v, v > 0)[0, 0]:.4f}"
  '0.7650'
  """
  check_range("gamma", gamma, 0.0, 1.0 + 1e-6)
  check_range("lam", lam, 0.0, 1.0 + 1e-6)
  tokens_first = [
    jnp.moveaxis(jnp.where(mask, each, 0.0), -1, 0)
    for each in (token_reward, value)
  ]
  present = jnp.moveaxis(mask, -1, 0)

  def step(later, token):  # type: ignore[no-untyped-def]  # of lax.scan
    next_value, next_advantage = later
    reward, value, here = token
    delta = reward + gamma * next_value - value
    advantage = delta + gamma * lam * next_advantage
    later = (
      jnp.where(here, value, next_value),
      jnp.where(here, advantage, next_advantage),
    )
    return later, jnp.where(here, advantage, 0.0)

  zero = jnp.zeros(mask.shape[:-1])
  _, advantage = jax.lax.scan(
    step, (zero, zero), (*tokens_first, present), reverse=True
  )
  return jnp.moveaxis(advantage, 0, -1)


@checked
def whiten(
  advantage: Float32[Array, "*sequences tokens"],
  mask: Bool[Array, "*sequences tokens"],
  *,
  epsilon: Scalar = 1e-8,
) -> Float32[Array, "*sequences tokens"]:
  """Advantages of a whole batch with mean 0 and variance 1.

      (A - mean) / sqrt(variance + ε)   over all tokens, variance by n - 1

  Use: before PPO's loss, over everything that one step sees.

  Args:
    advantage: of each token.
    mask: which tokens there are.
    epsilon: ε.

  Returns: one advantage per token, 0 outside of the mask.

  Reference: the code of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593),
  whose variance is by n; n - 1 is TRL's.

  >>> a = whiten(jnp.array([[1.0, 2.0, 3.0]]), jnp.ones((1, 3), bool))
  >>> f"{a[0, 2]:.4f}"
  '1.0000'
  """
  advantage = jnp.where(mask, advantage, 0.0)
  flat, present = jnp.ravel(advantage), jnp.ravel(mask)
  mean = mean_where(flat, present)
  square = sum_where((flat - mean) ** 2, present)
  free = jnp.sum(present, dtype=jnp.float32) - 1.0
  scale = jax.lax.rsqrt(square / jnp.maximum(free, 1.0) + epsilon)
  return jnp.where(mask, (advantage - mean) * scale, 0.0)
