"""Statistics of groups and advantages, against TRL, NumPy and known numbers."""

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import (
  ALL,
  MASK,
  OLD,
  REF,
  REWARD,
  assert_examples_run,
  close,
  trl_cases,
)

GROUPS = (losses.group_advantage, losses.group_centered, losses.leave_one_out)
every_advantage = pytest.mark.parametrize(
  "advantage", GROUPS, ids=lambda f: f.__name__
)


def _all(x):
  return jnp.ones(x.shape, bool)


def test_examples_in_docstrings_run():
  assert_examples_run(
    *GROUPS,
    losses.group_informative,
    losses.overlong_penalty,
    losses.token_rewards,
    losses.gae,
    losses.whiten,
  )


def test_advantages_of_four_known_samples():
  grpo = [0.783185850, -1.305309749, -0.261061950, 0.783185850]
  close(losses.group_advantage(REWARD, ALL), grpo)
  close(losses.group_centered(REWARD, ALL), [0.375, -0.625, -0.125, 0.375])
  close(losses.leave_one_out(REWARD, ALL), [0.5, -5 / 6, -1 / 6, 0.5])


@pytest.mark.parametrize(
  ("ddof", "expected_std", "expected"),
  [
    (1, 0.12500022, [1.19677356, -0.53169176, -1.06186320, 0.39678139]),
    (0, 0.10825337, [1.38191336, -0.61394400, -1.22613249, 0.45816312]),
  ],
)
def test_both_deviations_of_a_known_group(ddof, expected_std, expected):
  reward = jnp.array([0.85, 0.63393972, 0.56766764, 0.75])
  mean, std = losses.group_mean_std(reward, ALL, ddof=ddof)
  close(mean, 0.70040184)
  close(std, expected_std)
  ours = losses.group_advantage(reward, ALL, ddof=ddof, epsilon=1e-6)
  close(ours, expected)


@pytest.mark.parametrize(
  ("ddof", "expected"),
  [
    (0, [1.52752523, -1.09108945, 0.21821789, -0.65465367]),
    (1, [1.32287566, -0.94491118, 0.18898224, -0.56694671]),
  ],
)
def test_no_epsilon(ddof, expected):
  reward = jnp.array([2.0, -1, 0.5, -0.5])
  ours = losses.group_advantage(reward, ALL, ddof=ddof, epsilon=0)
  close(ours, expected)


def test_scaling_rewards_of_a_group_does_nothing():
  """But through epsilon; scaling the advantage does."""
  scale = 0.732867354
  ours = losses.group_advantage(scale * REWARD, ALL)
  close(ours, [0.783126233, -1.305210388, -0.261042078, 0.783126233])
  scaled = scale * losses.group_advantage(REWARD, ALL)
  close(scaled, [0.573971341, -0.956618902, -0.191323780, 0.573971341])


@trl_cases("group_advantage")
def test_group_advantage_is_trls(case):
  reward = jnp.array(case["reward"], jnp.float32)
  ours = losses.group_advantage(reward, _all(reward))
  # TRL computes these in float32 as well; measured: 1e-6.
  close(ours, case["advantage"], atol=3e-6)
  assert not ours[1].any()  # the group of equal rewards, exactly


@trl_cases("leave_one_out")
def test_leave_one_out_is_trls(case):
  """Which takes the log-ratio of a response, by beta, off its reward."""
  array = lambda key: jnp.array(case[key], jnp.float32)
  logratio = jnp.sum(array("old") - array("ref"), -1).reshape(3, 4)
  reward = array("reward") - case["beta"] * logratio
  ours = losses.leave_one_out(reward, _all(reward))
  close(ours, case["advantage"], atol=3e-6)


@trl_cases("overlong_penalty")
def test_overlong_penalty_is_trls(case):
  length = jnp.array(case["length"], jnp.int32)
  ours = losses.overlong_penalty(length, max_tokens=100, buffer=20)
  close(ours, case["penalty"])


def test_overlong_penalty_of_the_paper():
  length = jnp.array([16384, 18432, 20480, 30000])
  close(losses.overlong_penalty(length), [0, -0.5, -1, -1])


@pytest.mark.parametrize("planted", [np.nan, np.inf, 7.0])
@every_advantage
def test_missing_samples_are_as_none(advantage, planted):
  valid = jnp.array([[True, False, True, True, False], [False] * 5])
  reward = jnp.array([[1.0, 0, 0.3, 0.2, 0]] * 2)
  total = lambda x: jnp.sum(advantage(x, valid) ** 2)
  ours = advantage(jnp.where(valid, reward, planted), valid)
  alone = advantage(reward[0, valid[0]], jnp.ones(3, bool))
  close(ours[0, valid[0]], alone)
  assert not ours[~valid].any()
  grad = jax.grad(total)(jnp.where(valid, reward, planted))
  close(grad, jax.grad(total)(jnp.where(valid, reward, 0.5)))
  assert np.isfinite(grad).all()


@every_advantage
def test_a_sample_alone_has_no_advantage(advantage):
  valid = jnp.array([False, True, False])
  np.testing.assert_array_equal(advantage(jnp.full(3, 4.2), valid), np.zeros(3))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4))
def test_advantages_of_any_group(reward):
  reward = jnp.array(reward, jnp.float32)
  scale = float(jnp.abs(reward).max())
  centered, loo, grpo = (f(reward, ALL) for f in (_centered, _loo, _grpo))
  tolerance = 1e-5 * scale + 1e-5
  close(jnp.sum(centered), 0.0, atol=tolerance)
  close(loo, centered * 4 / 3, atol=tolerance)
  exact = np.asarray(reward, np.float64)
  if len(set(exact)) == 1:
    assert not grpo.any()
  else:
    expected = (exact - exact.mean()) / (exact.std(ddof=1) + 1e-4)
    # Rounding of the mean against the deviation.
    close(grpo, expected, atol=1e-6 * scale / (exact.std() + 1e-4) + 1e-5)


_centered, _loo, _grpo = map(
  jax.jit, (losses.group_centered, losses.leave_one_out, losses.group_advantage)
)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
@pytest.mark.parametrize("value", [0.7, -1e4, 0.0])
def test_equal_rewards_teach_nothing(value, epsilon):
  """Not even by rounding: the mean of seven times 0.7 is another number."""
  reward = jnp.full((2, 7), value)
  if value == 0.7:
    assert (losses.group_mean_std(reward, _all(reward))[1] > 0).all()
  ours = losses.group_advantage(reward, _all(reward), epsilon=epsilon)
  np.testing.assert_array_equal(ours, np.zeros((2, 7)))
  assert not losses.group_informative(reward, _all(reward)).any()


def test_informative_groups():
  reward = jnp.array([[1, 0, 1], [1, 1, 1], [1, 1, 0.5], [1, jnp.nan, 0]])
  valid = jnp.array([[True] * 3, [True] * 3, [True, True, False], [True] * 3])
  valid = valid & ~jnp.isnan(reward)
  ours = losses.group_informative(reward, valid)
  np.testing.assert_array_equal(ours, [True, False, False, True])


def test_statistics_of_few_samples():
  reward = jnp.array([[3.0, jnp.nan], [jnp.nan, jnp.nan]])
  mean, std = losses.group_mean_std(reward, ~jnp.isnan(reward))
  close(mean, [3.0, 0.0])
  close(std, [0.0, 0.0])


def test_token_rewards_of_a_known_sample():
  ours = losses.token_rewards(jnp.ones(4), OLD, REF, MASK)
  close(ours[0], [0.005, -0.005, 0.98], atol=1e-7)
  close(ours[3], [1 + 0.02, 0, 0])
  log_ratio = jnp.where(MASK, OLD - REF, 0).sum(-1)
  close(ours.sum(-1), 1.0 - 0.05 * log_ratio)


def test_the_reward_stands_at_the_last_token_there_is():
  mask = jnp.array([[False, True, False, True, False], [False] * 5])
  logp = jnp.where(mask, -1.0, jnp.nan)
  ours = losses.token_rewards(jnp.array([2.0, jnp.nan]), logp, logp, mask)
  close(ours, [[0, 0, 0, 2, 0], [0] * 5])


def test_gae_of_known_samples():
  value = jnp.array([[0.2, 0.3, 0.4]])
  here = jnp.ones((1, 3), bool)
  token_reward = losses.token_rewards(jnp.ones(1), OLD[:1], REF[:1], here)
  advantage = losses.gae(token_reward, value, here)
  # The value printed is rounded to four digits.
  close(advantage, [[0.7187, 0.646, 0.58]], atol=5e-5)
  close(advantage + value, [[0.9187, 0.946, 0.98]], atol=5e-5)
  rewards, values = jnp.array([[-0.001, 0.667204417]]), jnp.array([[0.5, 0.55]])
  ours = losses.gae(rewards, values, here[:, :2])
  close(ours, [[0.160344196, 0.117204417]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1, 1)])
def test_gae_against_the_sum(gamma, lam):
  """A_t = Σ_l (γ λ)^l δ_{t+l} over the tokens there are."""
  rng = np.random.default_rng(0)
  reward, value = rng.normal(size=(2, 2, 3, 6)).astype(np.float32)
  mask = rng.integers(0, 3, (2, 3, 6)) > 0
  plant = lambda x: jnp.where(mask, x, jnp.nan)
  ours = losses.gae(
    plant(reward), plant(value), jnp.array(mask), gamma=gamma, lam=lam
  )
  assert not ours[~mask].any()
  for index in np.ndindex(2, 3):
    here = mask[index]
    r, v = (x[index][here].astype(np.float64) for x in (reward, value))
    delta = r + gamma * np.append(v[1:], 0.0) - v
    expected = [
      np.sum((gamma * lam) ** np.arange(len(delta) - t) * delta[t:])
      for t in range(len(delta))
    ]
    close(ours[index][here], expected, atol=2e-6)


def test_gae_at_its_ends():
  """λ = 1 is the reward to come less the value, λ = 0 one step's error."""
  reward, value = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[0.5, 0.25, 1.0]])
  mask = jnp.ones((1, 3), bool)
  close(losses.gae(reward, value, mask, lam=1), [[6.5, 5.75, 3]])
  close(losses.gae(reward, value, mask, lam=0), [[0.75, 2.75, 3]])


@pytest.mark.parametrize("name", ["gamma", "lam"])
def test_gae_out_of_range(name):
  one = jnp.ones((1, 1))
  with pytest.raises(ValueError, match=f"{name} is 1.5"):
    losses.gae(one, one, one > 0, **{name: 1.5})


def test_whitening():
  rng = np.random.default_rng(1)
  advantage = rng.normal(2.0, 3.0, (3, 7)).astype(np.float32)
  mask = rng.integers(0, 3, (3, 7)) > 0
  ours = losses.whiten(jnp.where(mask, advantage, jnp.nan), jnp.array(mask))
  kept = advantage[mask].astype(np.float64)
  expected = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8)
  close(ours[mask], expected, atol=1e-6)
  assert not ours[~mask].any()


def test_whitening_next_to_nothing():
  one = jnp.array([[5.0, jnp.nan]])
  np.testing.assert_array_equal(losses.whiten(one, ~jnp.isnan(one)), [[0, 0]])
  none = jnp.array([[jnp.nan]])
  np.testing.assert_array_equal(losses.whiten(none, ~jnp.isnan(none)), [[0]])
