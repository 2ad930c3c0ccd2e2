"""PPO, REINFORCE and RLOO against TRL, NumPy and papers' numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import (
  ALL,
  MASK,
  NEW,
  OLD,
  REF,
  REWARD,
  assert_is_numpys,
  assert_is_trls,
  close,
  padded,
  trl_cases,
)


def per_token(loss, mask):
  """As a loop does: over the number of tokens there are."""
  return jnp.sum(loss) / jnp.sum(mask)


def random_samples(seed):
  rng = np.random.default_rng(seed)
  new = -np.abs(rng.normal(size=(3, 5)))
  old, ref = (new + rng.normal(scale=0.4, size=new.shape) for _ in range(2))
  mask = np.arange(5) < np.array([[5], [3], [1]])
  mask[0, 2] = False
  return {"new": new, "old": old, "ref": ref, "mask": mask}, rng


def reference_clip(new, old, advantage, mask, *, epsilon_low, epsilon_high):
  ratio = np.exp(new - old)
  clipped = np.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
  return -np.minimum(ratio * advantage, clipped * advantage) * mask


def reference_value(value, old, returns, mask, *, epsilon):
  moved = old + np.clip(value - old, -epsilon, epsilon)
  error = np.maximum((value - returns) ** 2, (moved - returns) ** 2)
  return 0.5 * error * mask


def reference_rloo(new, old, advantage, mask, *, epsilon_low, epsilon_high):
  ratio = np.exp(np.sum((new - old) * mask, axis=-1))
  clipped = np.clip(ratio, 1 - epsilon_low, 1 + epsilon_high)
  return -np.minimum(ratio * advantage, clipped * advantage)


def test_ppo_of_a_known_sample():
  """Whitened advantages, and both losses together."""
  here = MASK[:1]
  old_value = jnp.array([[0.2, 0.3, 0.4]])
  value = jnp.array([[0.5, 0.2, 0.7]])
  rewards = losses.token_rewards(jnp.ones(1), OLD[:1], REF[:1], here)
  advantage = losses.gae(rewards, old_value, here)
  white = losses.whiten(advantage, here)
  policy = per_token(losses.ppo_clip(NEW[:1], OLD[:1], white, here), here)
  close(policy, -0.1260122)
  error = losses.value_clip(value, old_value, advantage + old_value, here)
  error = per_token(error, here)
  close(error, 0.1616609)
  close(policy + 0.1 * error, -0.1098461)


def test_ppo_clip_of_known_tokens():
  new = padded([[-1, -0.5, -2], [-0.7, -1.2]])
  old = padded([[-1.2, -0.5, -1.7], [-0.9, -1.0]])
  mask = ~jnp.isnan(new)
  advantage = jnp.array([[1.0] * 3, [-0.5] * 3])
  loss = losses.ppo_clip(new, old, advantage, mask)
  expected = [[-1.2, -1, -0.74081822], [0.61070138, 0.40936538, 0]]
  close(loss, expected)
  close(per_token(loss, mask), -0.38415029)
  close(jnp.mean(losses.mean_where(loss, mask)), -0.23511968)


def test_pairwise_ppo_of_known_tokens():
  value = jnp.array([[0.5, 0.55]])
  old = jnp.array([[-1.0, -0.7]])
  new = old + jnp.array([[0.1, -0.3]])
  ref = old - jnp.array([[0.02, -0.01]])
  win, here = jnp.array([0.666704417]), jnp.ones((1, 2), bool)
  loss = functools.partial(
    losses.ppo_pairwise, new, old, ref, value, value, win, here
  )
  policy = jnp.mean(loss(value_weight=0.0))
  close(policy, -0.132017455)
  close(jnp.mean(loss(value_weight=1.0)) - policy, 0.009861784, atol=2e-7)
  close(jnp.mean(loss()), -0.132017455 + 0.1 * 0.009861784)


def test_rloo_of_known_samples():
  advantage = losses.leave_one_out(REWARD, ALL)
  close(jnp.mean(losses.rloo(NEW, OLD, advantage, MASK)), -0.0433945)


def test_rloo_departs_from_the_paper():
  """Which has no ratio. Its gradient is the same where policies agree."""
  advantage = losses.leave_one_out(REWARD, ALL)
  plain = losses.reinforce(NEW, advantage, MASK)
  close(jnp.mean(plain), 0.0166667, atol=1e-7)
  clean = jnp.where(MASK, NEW, 0.0)
  slope = lambda loss: jax.grad(lambda new: jnp.sum(loss(new)))(clean)
  close(
    slope(lambda new: losses.rloo(new, clean, advantage, MASK)),
    slope(lambda new: losses.reinforce(new, advantage, MASK)),
  )


def test_reinforce_with_exact_divergence_of_known_tokens():
  logp = jax.nn.log_softmax(
    jnp.array([[0.2, -0.1, 0], [1, 0, -1], [0, 0.5, 0.5]])
  )
  ref = jax.nn.log_softmax(jnp.array([[0, 0, 0], [0.5, 0, 0], [0, 0, 0]]))
  token_logp = logp[jnp.arange(3), jnp.array([0, 0, 2])]
  advantage = 0.8 - jnp.array([0.5, 0.6, 0.9])
  loss = losses.reinforce_kl(
    token_logp, advantage, losses.kl_exact(logp, ref), jnp.ones(3, bool)
  )
  close(loss, 0.2570597846)


def test_the_value_model_of_known_tokens():
  """Without clipping it is half the squared error."""
  value = jnp.array([[0.5, 0.6, 0.9]])
  loss = losses.value_clip(value, value, jnp.full((1, 3), 0.8), value > 0)
  close(2 * jnp.sum(loss), 0.14)


@trl_cases("rloo")
def test_rloo_is_trls(case):
  assert_is_trls(
    case,
    lambda **arrays: jnp.mean(losses.rloo(**arrays, **case["options"])),
    ("token_logp", "old_token_logp", "advantage", "mask"),
  )


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients(seed):
  samples, rng = random_samples(seed)
  tokens = {"new": samples["new"], "old": samples["old"]}
  each = {"advantage": rng.normal(size=(3, 5)), "mask": samples["mask"]}
  whole = {"advantage": rng.normal(size=3), "mask": samples["mask"]}
  room = {"epsilon_low": 0.2, "epsilon_high": 0.3}
  check = functools.partial(assert_is_numpys, by=["new"])
  check(losses.ppo_clip, reference_clip, tokens | each, **room)
  check(losses.rloo, reference_rloo, tokens | whole, **room)
  check(
    losses.reinforce,
    lambda new, a, mask: -a * np.sum(new * mask, axis=-1),
    {"new": samples["new"]} | whole,
  )
  assert_is_numpys(
    losses.reinforce_kl,
    lambda new, a, kl, mask, beta: np.sum(
      mask * (beta * kl - (1 - beta) * a * new), axis=-1
    ),
    {
      "new": samples["new"],
      "advantage": rng.normal(size=(3, 5)),
      "kl": np.abs(rng.normal(size=(3, 5))),
      "mask": samples["mask"],
    },
    by=["new", "kl"],
    beta=0.2,
  )
  assert_is_numpys(
    losses.value_clip,
    reference_value,
    {
      "value": rng.normal(size=(3, 5)),
      "old": rng.normal(size=(3, 5)),
      "returns": rng.normal(size=(3, 5)),
      "mask": samples["mask"],
    },
    by=["value"],
    epsilon=0.4,
  )


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_of_pairwise_ppo(seed):
  samples, rng = random_samples(seed)
  room = {"epsilon_low": 0.2, "epsilon_high": 0.3}

  def reference(new, old, ref, value, old_value, win, mask, **options):
    advantage = np.zeros(new.shape)
    for row, here in enumerate(mask):
      rewards = -options["beta"] * (old - ref)[row][here]
      rewards[-1] += win[row]
      values = np.append(old_value[row][here], 0.0)
      later, found = 0.0, []
      for t in reversed(range(len(rewards))):
        delta = rewards[t] + options["gamma"] * values[t + 1] - values[t]
        later = delta + options["gamma"] * options["lam"] * later
        found.append(later)
      advantage[row][here] = found[::-1]
    policy = reference_clip(new, old, advantage, mask, **room)
    error = reference_value(
      value, old_value, advantage + old_value, mask, epsilon=0.4
    )
    return policy + options["value_weight"] * error

  old_value = rng.normal(size=(3, 5))
  inputs = {key: samples[key] for key in ("new", "old", "ref")} | {
    "value": old_value + rng.normal(scale=0.5, size=(3, 5)),
    "old_value": old_value,
    "win": rng.uniform(size=3),
    "mask": samples["mask"],
  }
  assert_is_numpys(
    losses.ppo_pairwise,
    reference,
    inputs,
    by=["new", "value"],
    beta=0.1,
    gamma=0.9,
    lam=0.8,
    value_weight=0.3,
    value_epsilon=0.4,
    **room,
  )


def test_where_policies_agree():
  advantage = jnp.array([0.5, -2.0, 1.0, 0.0])
  each = jnp.broadcast_to(advantage[:, None], MASK.shape)
  token = losses.ppo_clip(NEW, NEW, each, MASK)
  np.testing.assert_array_equal(token, jnp.where(MASK, -each, 0.0))
  np.testing.assert_array_equal(
    losses.rloo(NEW, NEW, advantage, MASK), -advantage
  )


def test_no_token_no_loss():
  """Of a response of padding alone, whatever stands there."""
  mask = MASK.at[2].set(False)
  bad = jnp.where(mask, NEW, jnp.nan)
  advantage = jnp.array([1.0, 1.0, jnp.nan, 1.0])
  each = jnp.where(mask, 1.0, jnp.nan)
  for loss in (
    losses.rloo(bad, bad, advantage, mask),
    losses.reinforce(bad, advantage, mask),
    losses.reinforce_kl(bad, each, each, mask),
  ):
    assert loss[2] == 0.0
    assert np.isfinite(loss).all()
  assert not losses.ppo_clip(bad, bad, each, mask)[~mask].any()


def test_a_ratio_that_overflows_stays_finite():
  """By e^x it would be inf, and its gradient NaN."""
  old, advantage = jnp.zeros((1, 1)), jnp.array([[-1.0]])
  far, here = jnp.full((1, 1), 100.0), jnp.ones((1, 1), bool)
  assert np.isinf(jnp.exp(far)).all()
  loss = lambda new: jnp.sum(losses.ppo_clip(new, old, advantage, here))
  value, grad = jax.value_and_grad(loss)(far)
  close(value, np.exp(20.0) * 81.0)
  close(grad, [[np.exp(20.0)]])


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_the_share_of_the_divergence_out_of_range(beta):
  one = jnp.ones((1, 1))
  with pytest.raises(ValueError, match="beta is"):
    losses.reinforce_kl(one, one, one, one > 0, beta=beta)
