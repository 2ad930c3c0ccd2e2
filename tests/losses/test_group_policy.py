"""GRPO's family against TRL, NumPy and papers' numbers."""

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
  trl_cases,
)

GRPO = losses.group_advantage(REWARD, ALL)
CENTERED = losses.group_centered(REWARD, ALL)
TOKENS = ("token_logp", "old_token_logp", "advantage", "mask")
THREE = ("token_logp", "old_token_logp", "ref_token_logp", "advantage", "mask")


def test_grpo_of_known_samples():
  loss = functools.partial(losses.grpo, NEW, OLD, REF)
  close(jnp.mean(loss(GRPO, MASK)), -0.0331753)
  population = losses.group_advantage(REWARD, ALL, ddof=0, epsilon=0)
  close(jnp.mean(loss(population, MASK, beta=0)), -0.0387877, atol=5e-7)


def test_grpo_departs_from_trls_default():
  """Which has no pull towards the reference, and divides by all tokens."""
  ours = losses.grpo(NEW, OLD, REF, GRPO, MASK)
  theirs = losses.grpo(NEW, OLD, REF, GRPO, MASK, beta=0.0)
  close([jnp.mean(ours), jnp.mean(theirs)], [-0.0331753, -0.0335841])


def test_dapo_of_known_samples_departs_from_trls_default():
  """Which clips at 0.2 above, too."""
  loss = functools.partial(losses.dapo, NEW, OLD, GRPO, MASK)
  per_token = [jnp.sum(x) / 9 for x in (loss(), loss(epsilon_high=0.2))]
  close(per_token, [0.0086601, 0.0174842], atol=1e-7)


def test_dr_grpo_of_known_samples():
  loss = functools.partial(losses.dr_grpo, NEW, OLD, CENTERED, MASK)
  close(jnp.mean(loss(max_tokens=4)), 0.0047091, atol=1e-7)
  close(jnp.mean(loss(max_tokens=1)), 0.0188363, atol=1e-7)


def test_gspo_of_known_samples_departs_from_trls_default():
  """Which clips ratios of responses as widely as those of tokens."""
  wide = losses.gspo(NEW, OLD, GRPO, MASK, epsilon_low=0.2, epsilon_high=0.2)
  close(jnp.mean(wide), -0.0548470, atol=1e-7)
  ours = losses.gspo(NEW, OLD, GRPO, MASK)
  assert np.abs(jnp.mean(ours) - jnp.mean(wide)) > 0.01


@pytest.mark.parametrize(
  ("difficulty", "expected"), [(0.732867354, -0.024203891), (1.0, -0.033175313)]
)
def test_grpo_s_of_known_samples(difficulty, expected):
  scale = jnp.full(4, difficulty)
  loss = losses.grpo_s(NEW, OLD, REF, GRPO, scale, MASK)
  close(jnp.mean(loss), expected, atol=1e-7)


@trl_cases("grpo")
def test_grpo_is_trls(case):
  beta = case["options"]["beta"]
  assert_is_trls(
    case, lambda **arrays: jnp.mean(losses.grpo(**arrays, beta=beta)), THREE
  )


@trl_cases("dapo")
def test_dapo_is_trls(case):
  count = np.sum(case["mask"])
  assert_is_trls(
    case, lambda **arrays: jnp.sum(losses.dapo(**arrays)) / count, TOKENS
  )


@trl_cases("dr_grpo")
def test_dr_grpo_is_trls(case):
  most = case["options"]["max_completion_length"]
  loss = functools.partial(losses.dr_grpo, max_tokens=most)
  assert_is_trls(case, lambda **arrays: jnp.mean(loss(**arrays)), TOKENS)


@trl_cases("gspo")
def test_gspo_is_trls(case):
  loss = functools.partial(
    losses.gspo,
    **{key: case["options"][key] for key in ("epsilon_low", "epsilon_high")},
  )
  assert_is_trls(case, lambda **arrays: jnp.mean(loss(**arrays)), TOKENS)


def reference_grpo_s(new, old, ref, advantage, difficulty, mask, *, beta):
  ratio, d = np.exp(new - old), ref - new
  scaled = (difficulty * advantage)[:, None]
  surrogate = np.minimum(ratio * scaled, np.clip(ratio, 0.8, 1.2) * scaled)
  loss = -surrogate + beta * (np.exp(d) - d - 1)
  return np.sum(loss * mask, axis=-1) / np.maximum(mask.sum(-1), 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_of_grpo_s(seed):
  """TRL has none; the others are held against TRL above."""
  rng = np.random.default_rng(seed)
  new = -np.abs(rng.normal(size=(4, 5)))
  inputs = {
    "new": new,
    "old": new + rng.normal(scale=0.4, size=new.shape),
    "ref": new + rng.normal(scale=0.4, size=new.shape),
    "advantage": rng.normal(size=4),
    "difficulty": rng.uniform(0.5, 1.5, 4),
    "mask": np.arange(5) < np.array([[5], [3], [1], [0]]),
  }
  assert_is_numpys(
    losses.grpo_s, reference_grpo_s, inputs, by=["new"], beta=0.1
  )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_the_first_step_has_the_plain_gradient(name):
  """Where the policy is what sampled, ratios are 1: A times the token's."""
  clean = jnp.where(MASK, NEW, 0.0)
  loss = losses.get(name)
  given = {"old_token_logp": clean, "advantage": GRPO, "mask": MASK}
  if name == "grpo":
    given["ref_token_logp"] = clean
  grad = jax.grad(lambda new: jnp.sum(loss(new, **given)))(clean)
  length = MASK.sum(-1, keepdims=True)
  share = {"dapo": 1.0, "dr_grpo": 1 / 3000}.get(name, 1 / length)
  close(grad, jnp.where(MASK, -GRPO[:, None] * share, 0.0), atol=1e-9)


def test_one_token_each_is_one_loss():
  """Tokens, responses and their means are the same then."""
  new, old, mask = NEW[:, :1], OLD[:, :1], MASK[:, :1]
  room = {"epsilon_low": 0.1, "epsilon_high": 0.2}
  given = new, old, GRPO, mask
  expected = losses.dapo(*given, **room)[:, 0]
  close(losses.gspo(*given, **room), expected)
  close(losses.rloo(*given, **room), expected)
  close(losses.dr_grpo(*given, max_tokens=1, **room), expected)
  grpo = losses.grpo(new, old, new, GRPO, mask, beta=0.7, **room)
  close(grpo, expected)


def test_no_token_no_loss():
  mask = MASK.at[2].set(False)
  bad = jnp.where(mask, NEW, jnp.nan)
  advantage = GRPO.at[2].set(jnp.nan)
  for loss in (
    losses.grpo(bad, bad, bad, advantage, mask),
    losses.dr_grpo(bad, bad, advantage, mask),
    losses.gspo(bad, bad, advantage, mask),
  ):
    assert loss[2] == 0.0
    assert np.isfinite(loss).all()
  assert not losses.dapo(bad, bad, advantage, mask)[~mask].any()


def test_reference_pulls_the_policy_back():
  """Without advantages there is nothing else, in the right direction."""
  ref = jnp.full((1, 2), -1.0)
  nothing, here = jnp.zeros(1), jnp.ones((1, 2), bool)
  loss = lambda new: jnp.sum(losses.grpo(new, new, ref, nothing, here))
  grad = jax.grad(loss)(jnp.array([[-0.5, -1.5]]))
  assert grad[0, 0] > 0 > grad[0, 1]
  close(jax.grad(loss)(ref), jnp.zeros((1, 2)))
