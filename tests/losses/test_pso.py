"""Pairwise sample optimization against torch and the paper's code."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxpref import losses

LN2 = math.log(2)


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def _close(ours, theirs, rtol=1e-5, **kwargs):
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


def test_two_trajectories_of_known_ratios():
  """One step of each; log-ratios of -.01 and .035, both within the clip."""
  a, b = _f32([[-0.01]]), _f32([[0.035]])
  _close(losses.pso(b, a), [[0.1002065589]])
  _close(losses.pso(a, b), [[2.3502065589]])


def _online(chosen, rejected, beta=50.0, clip=0.1):
  """The authors' steps: ratios, clipped, and their logarithms."""
  ratios = [
    torch.clamp(x.exp(), 1 - clip, 1 + clip) for x in (chosen, rejected)
  ]
  return -F.logsigmoid(beta * (ratios[0].log() - ratios[1].log()))


@pytest.mark.parametrize("options", [{}, {"beta": 3.0, "clip": 0.2}])
def test_pso_in_torch(options):
  rng = np.random.default_rng(0)
  given = (0.2 * rng.normal(size=(2, 5, 7))).astype(np.float32)
  chosen, rejected = torch.tensor(given.astype(np.float64), requires_grad=True)
  chosen.retain_grad()
  rejected.retain_grad()
  theirs = _online(chosen, rejected, **options)
  theirs.sum().backward()
  pair = [_f32(x) for x in given]
  # Measured: 4e-7 of the value, 7e-7 of the gradient.
  _close(losses.pso(*pair, **options), theirs.detach())
  total = lambda *x: jnp.sum(losses.pso(*x, **options))
  grads = jax.grad(total, argnums=(0, 1))(*pair)
  _close(grads[0], chosen.grad)
  _close(grads[1], rejected.grad)
  # Beyond the clip as within it: both are met.
  assert (np.asarray(grads[0]) == 0).any()
  assert (np.asarray(grads[0]) < 0).any()


def test_a_step_beyond_the_clip_has_no_gradient():
  """Also where it left on the wrong side, which no gradient brings back."""
  far = _f32([[0.2, -0.2, 5.0, -5.0, 0.05]])
  near = jnp.zeros_like(far)
  total = lambda chosen: jnp.sum(losses.pso(chosen, near))
  grad = jax.grad(total)(far)
  np.testing.assert_array_equal(grad[0, :4], np.zeros(4))
  assert grad[0, 4] < 0


def test_values_lie_between_two_bounds():
  far = jnp.full((1, 1), 9.0)
  logit = 50 * (math.log(1.1) - math.log(0.9))
  _close(losses.pso(far, -far), [[math.log1p(math.exp(-logit))]])
  _close(losses.pso(far, -far), [[4.390e-5]], rtol=1e-3)
  _close(losses.pso(-far, far), [[10.03358]], rtol=1e-6)


def test_agreement_gives_ln2():
  x = jnp.full((2, 3), 0.04)
  _close(losses.pso(x, x), np.full((2, 3), LN2), rtol=1e-7)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan")])
def test_a_clip_out_of_range_is_refused(wrong):
  x = jnp.zeros((1, 1))
  with pytest.raises(ValueError, match="clip is"):
    losses.pso(x, x, clip=wrong)


def test_offline_is_the_same_of_other_steps():
  rng = np.random.default_rng(1)
  given = [_f32(0.1 * rng.normal(size=(4, 3))) for _ in range(2)]
  for options in ({}, {"beta": 10.0, "clip": 0.05}):
    ours = losses.pso_offline(*given, **options)
    np.testing.assert_array_equal(ours, losses.pso(*given, **options))
  a, b = _f32([[-0.01]]), _f32([[0.035]])
  _close(losses.pso_offline(b, a), [[0.1002065589]])
  _close(losses.pso_offline(a, b), [[2.3502065589]])


def test_the_sum_begins_at_ln2_and_pulls_all_steps_alike():
  zero = jnp.zeros((2, 3))
  total = lambda *x: jnp.sum(losses.pso_offline_sum(*x, beta=7.0))
  value, grads = jax.value_and_grad(total, argnums=(0, 1))(zero, zero)
  _close(value, 2 * LN2, rtol=1e-7)
  _close(grads[0], np.full((2, 3), -3.5), rtol=1e-7)
  _close(grads[1], np.full((2, 3), 3.5), rtol=1e-7)


def test_the_paper_sums_the_steps_inside_one_sigmoid():
  """Offline: the chosen image by its errors, the rejected one by its steps."""
  rng = np.random.default_rng(0)
  steps, shape = 3, (2, 2, 1)
  chosen = rng.normal(size=(3, steps, *shape))  # model, reference, noise
  rejected = rng.normal(size=(3, steps, *shape))  # model, reference, reached
  std = np.array([0.6, 0.4, 1.3])
  forward = ((chosen[:2] - chosen[2]) ** 2).sum(axis=(2, 3, 4))
  sampled = ((rejected[:2] - rejected[2]) ** 2).sum(axis=(2, 3, 4))
  sampled = sampled / (2 * std**2)
  inside = ((forward[0] - forward[1]) - (sampled[0] - sampled[1])).sum()
  beta = 0.3
  expected = np.log1p(np.exp(beta * inside))
  elements = np.prod(shape)
  logratio = 2 * losses.denoising_logratio(*map(_f32, chosen))
  step_logratio = losses.denoising_step_logratio(
    _f32(rejected[2]), _f32(rejected[0]), _f32(rejected[1]), _f32(std)
  )
  given = logratio[None], step_logratio[None]
  scaled = beta * elements
  _close(losses.pso_offline_sum(*given, beta=scaled), [expected])
  sums = (jnp.sum(each) for each in given)
  _close(losses.dpo(*sums, beta=scaled), expected)


def test_dreambooth_of_known_errors():
  """Errors of .1 and .12; of the reference .1002 and .1198."""
  pair = _f32([1e-4]), _f32([-1e-4])
  error = _f32([0.12])
  ours = losses.pso_dreambooth(*pair, error, beta=2 * 200, prior_weight=0)
  _close(ours, [0.6713891610])
  ours = losses.pso_dreambooth(*pair, error, beta=2 * 200)
  _close(ours, [0.6713891610 + 0.06])


def test_dreambooth_hinge_of_known_errors():
  errors = _f32([0.1]), _f32([0.12])
  _close(losses.pso_dreambooth_hinge(*errors, prior_weight=0), [1.44])
  _close(losses.pso_dreambooth_hinge(*errors), [1.5])


_hinge = jax.jit(losses.pso_dreambooth_hinge)
_error = st.floats(0, 1, width=32)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(_error, _error)
def test_at_the_defaults_the_rejected_image_cancels_out(chosen, rejected):
  """As long as the margin is below 1, that is, until an error of over 2."""
  total = lambda *x: jnp.sum(_hinge(*x))
  errors = _f32([chosen]), _f32([rejected])
  value, grads = jax.value_and_grad(total, argnums=(0, 1))(*errors)
  _close(value, 1 + 5 * chosen, rtol=1e-6)
  _close(grads[0], [5.0], rtol=1e-6)
  _close(grads[1], [0.0], atol=1e-6)


def test_once_the_hinge_is_met_only_the_prior_is_left():
  total = lambda *x: jnp.sum(losses.pso_dreambooth_hinge(*x))
  grads = jax.grad(total, argnums=(0, 1))(_f32([0.0]), _f32([2.5]))
  _close(np.array(grads), [[0.0], [0.5]], rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_dreambooth_in_torch(seed):
  """The authors' logits of four mean squared errors of each pair."""
  rng = np.random.default_rng(seed)
  given = rng.uniform(0.0, 1.0, size=(4, 6)).astype(np.float32)
  errors = [
    torch.tensor(x.astype(np.float64), requires_grad=True) for x in given
  ]
  chosen, rejected, ref_chosen, ref_rejected = errors
  beta, delta, prior = 5.0, 0.1, 0.5
  logits = (ref_chosen - delta * ref_rejected) - (chosen - delta * rejected)
  theirs = -F.logsigmoid(beta * logits) + prior * rejected
  theirs.sum().backward()

  def ours(chosen, rejected):
    chosen_logratio = 0.5 * (_f32(given[2]) - chosen)
    rejected_logratio = 0.5 * (_f32(given[3]) - rejected)
    return losses.pso_dreambooth(chosen_logratio, rejected_logratio, rejected)

  pair = _f32(given[0]), _f32(given[1])
  # Measured: 4e-8 of the value; 2e-6 where the gradient's terms cancel.
  _close(ours(*pair), theirs.detach(), rtol=2e-6)
  total = lambda *x: jnp.sum(ours(*x))
  grads = jax.grad(total, argnums=(0, 1))(*pair)
  _close(grads[0], chosen.grad, rtol=2e-5)
  _close(grads[1], rejected.grad, rtol=2e-5)


def test_dreambooth_hinge_in_torch():
  rng = np.random.default_rng(0)
  given = (4 * rng.uniform(0.0, 1.0, size=(2, 12))).astype(np.float32)
  given[0] *= 0.02  # so that the hinge is met in some
  chosen, rejected = (
    torch.tensor(x.astype(np.float64), requires_grad=True) for x in given
  )
  theirs = torch.relu(1 - 5.0 * -(chosen - 0.1 * rejected)) + 0.3 * rejected
  theirs.sum().backward()
  loss = lambda *x: losses.pso_dreambooth_hinge(*x, prior_weight=0.3)
  pair = _f32(given[0]), _f32(given[1])
  _close(loss(*pair), theirs.detach(), rtol=2e-6)
  grads = jax.grad(lambda *x: jnp.sum(loss(*x)), argnums=(0, 1))(*pair)
  _close(grads[0], chosen.grad, rtol=2e-6)
  _close(grads[1], rejected.grad, rtol=2e-6)
  assert len(np.unique(grads[0])) == 2
