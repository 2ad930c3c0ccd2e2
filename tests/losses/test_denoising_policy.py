"""Policy gradients of denoising steps against torch and papers' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref import losses

from .samples import assert_examples_run, assert_is_numpys, close

STD = jnp.sqrt(jnp.array([0.16525901]))
MEAN = jnp.array([[0.72141697, 0.22868238]])
X = jnp.array([[0.76206903, 0.14737825]])


def test_examples_in_docstrings_run():
  assert_examples_run(
    losses.gaussian_logp, losses.gaussian_mean_logp, losses.smooth_l1
  )


def test_a_known_step():
  """Step 5 of 10: what was drawn is 0.1 and -0.2 deviations off the mean."""
  logp = losses.gaussian_logp(X, MEAN, STD)
  close(logp, [-0.0626358160], atol=1e-6)
  # The denoiser moves by 0.01 of its prediction, the mean by a share of it.
  share = _share_of_prediction()
  moved = losses.gaussian_logp(X, MEAN + share * 0.01, STD)
  close(moved, [-0.0636498362], atol=1e-6)
  close(jnp.exp(moved - logp), [0.9989864938], atol=1e-6)


def _share_of_prediction():
  """sqrt(ᾱ_4) β_5 / (1 - ᾱ_5) of a cosine schedule of ten steps."""
  beta = [0.02790726, 0.07549364, 0.12439599, 0.17718953, 0.23728153]
  before = np.prod(1 - np.array(beta[:4]))
  return np.sqrt(before) * beta[4] / (1 - before * (1 - beta[4]))


def test_ratios_and_anchor_of_known_steps():
  advantage = losses.group_advantage(
    jnp.array([2.0, -1, 0.5, -0.5]), jnp.ones(4, bool), ddof=0, epsilon=0
  )
  logp = jnp.log(jnp.array([[1.02], [0.97], [0.995], [1.5]]))
  here, zero = jnp.ones((4, 1), bool), jnp.zeros((4, 1))
  expected = [-1.54280048, 1.08017856, -0.2171268, 0.98198051]
  loss = losses.gen_drive(logp, zero, advantage, zero, here)
  close(loss[:, 0], expected)
  close(losses.ddpo(logp, zero, advantage, here, epsilon=0.01)[:, 0], expected)
  error = losses.smooth_l1(
    jnp.array([[0.5, 2, -0.3]]), jnp.array([[0, 0, -0.1]])
  )
  close(error, [0.5483333333])
  everywhere = jnp.broadcast_to(error, (4, 1))
  anchored = losses.gen_drive(logp, zero, advantage, everywhere, here)
  close(jnp.mean(anchored), 5.5588912778)
  close(jnp.mean(loss), 0.0755579445, atol=1e-6)


def test_a_density_is_torchs():
  rng = np.random.default_rng(0)
  x, mean = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  std = rng.uniform(0.2, 2, (3, 4)).astype(np.float32)
  normal = torch.distributions.Normal(
    torch.tensor(mean), torch.tensor(std)[..., None]
  )
  each = normal.log_prob(torch.tensor(x))
  x, mean, std = map(jnp.asarray, (x, mean, std))
  # Measured: 3e-7.
  close(losses.gaussian_logp(x, mean, std), each.sum(-1), rtol=3e-6)
  close(losses.gaussian_mean_logp(x, mean, std), each.mean(-1), rtol=3e-6)


def test_smooth_l1_is_torchs():
  prediction = np.linspace(-3, 3, 14, dtype=np.float32).reshape(2, 7)
  target = np.zeros_like(prediction)
  x = torch.tensor(prediction, requires_grad=True)
  theirs = torch.nn.functional.smooth_l1_loss(
    x, torch.tensor(target), reduction="none"
  ).mean(-1)
  theirs.sum().backward()
  prediction, target = jnp.asarray(prediction), jnp.asarray(target)
  close(losses.smooth_l1(prediction, target), theirs.detach())
  grad = jax.grad(lambda x: jnp.sum(losses.smooth_l1(x, target)))
  close(grad(prediction), x.grad)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients(seed):
  rng = np.random.default_rng(seed)
  new = rng.normal(size=(3, 4))
  steps = {"new": new, "old": new + rng.normal(scale=0.1, size=new.shape)}
  mask = rng.integers(0, 4, (3, 4)) > 0
  advantage = rng.normal(scale=2, size=3)

  def surrogate(new, old, advantage, mask, epsilon):
    ratio, a = np.exp(new - old), advantage[:, None]
    clipped = np.clip(ratio, 1 - epsilon, 1 + epsilon)
    return mask * np.maximum(-a * ratio, -a * clipped)

  assert_is_numpys(
    losses.ddpo,
    lambda new, old, a, mask, epsilon, advantage_clip: surrogate(
      new, old, np.clip(a, -advantage_clip, advantage_clip), mask, epsilon
    ),
    steps | {"advantage": advantage, "mask": mask},
    by=["new"],
    epsilon=0.05,
    advantage_clip=1.5,
  )
  assert_is_numpys(
    losses.gen_drive,
    lambda new, old, a, error, mask, epsilon, anchor_weight: (
      surrogate(new, old, a, mask, epsilon) + anchor_weight * error * mask
    ),
    steps
    | {
      "advantage": advantage,
      "error": np.abs(rng.normal(size=(3, 4))),
      "mask": mask,
    },
    by=["new", "error"],
    epsilon=0.05,
    anchor_weight=3.0,
  )


def test_gradient_of_a_density():
  """By the mean: (x - mean) / std², summed or averaged."""
  grad = jax.grad(lambda mean: jnp.sum(losses.gaussian_logp(X, mean, STD)))
  close(grad(MEAN), (X - MEAN) / 0.16525901, rtol=1e-4)
  average = jax.grad(
    lambda mean: jnp.sum(losses.gaussian_mean_logp(X, mean, STD))
  )
  close(average(MEAN), grad(MEAN) / 2)


def test_a_step_without_noise_has_no_say():
  x, mean = jnp.ones((2, 3)), jnp.zeros((2, 3))
  std = jnp.array([0.0, 2.0])
  loss = lambda mean, std: jnp.sum(losses.gaussian_logp(x, mean, std))
  value, grads = jax.value_and_grad(loss, (0, 1))(mean, std)
  close(value, -3 / 8 - 3 * np.log(2) - 1.5 * np.log(2 * np.pi))
  close(grads[0], [[0, 0, 0], [1 / 4] * 3])
  # Of the other step: Σ (x - mean)² / std³ - 1 / std.
  close(grads[1], [0, 3 / 8 - 3 / 2])


def test_advantages_are_clipped():
  old, here = jnp.zeros((3, 2)), jnp.ones((3, 2), bool)
  loss = losses.ddpo(old, old, jnp.array([9.0, -9.0, 2.0]), here)
  np.testing.assert_array_equal(loss[:, 0], [-5, 5, -2])


@pytest.mark.parametrize("name", ["ddpo", "gen_drive"])
def test_padding_is_harmless(name):
  loss = losses.get(name)
  mask = jnp.array([[True, False], [True, True], [False, False]])
  new = jnp.array([[0.01, 0], [-0.02, 0.03], [0, 0]])
  advantage = jnp.array([1.0, -2.0, 0.5])

  def grad(new, advantage, planted):
    plant = lambda x: jnp.where(mask, x, planted)
    error = [plant(new**2)] if name == "gen_drive" else []
    old = plant(jnp.zeros((3, 2)))
    total = lambda new: jnp.sum(loss(new, old, advantage, *error, mask))
    return jax.value_and_grad(total)(plant(new))

  value, slope = grad(new, advantage.at[2].set(jnp.nan), jnp.nan)
  expected, clean = grad(new, advantage, 0.0)
  close(value, expected)
  np.testing.assert_array_equal(slope, clean)
