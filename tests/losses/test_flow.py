"""Flow losses against torch, the paper's numbers and Diffusion-DPO."""

import doctest
import inspect

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxpref import losses


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def _latents(rows):
  return _f32(rows)[..., None, :, None]


def _close(ours, theirs, rtol=1e-5, **kwargs):
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


# A pair at t = .3, its shared noise, and what was predicted less its target.
TIME = _f32([0.3])
NOISE = _latents([[0.2, -0.4, 0.6, 1]])
CHOSEN, REJECTED = _latents([[[1, 0, -1, 0.5]], [[0, 0.5, -0.5, -1]]])


def _logratio(latent, error, ref_error):
  target = NOISE - latent
  return losses.flow_logratio(
    target + _latents([error]), target + _latents([ref_error]), latent, NOISE
  )


PAIR = (
  _logratio(CHOSEN, [0.1, -0.1, 0, 0.2], [0.3, -0.2, 0.1, 0.2]),
  _logratio(REJECTED, [0.4, 0, -0.2, 0.1], [0.1, 0.1, -0.2, 0.1]),
)


@pytest.mark.parametrize(
  ("beta", "power", "expected"),
  [
    (10, 0, 0.5437926040),
    (10, 2, 0.6166889067),
    (100, 0, 0.0380413717),
    (100, 2, 0.1851645404),
    # The paper's sums over four elements.
    (4 * 10, 0, 0.2410084538),
    (4 * 10, 2, 0.4245332674),
  ],
)
def test_flow_dpo_of_a_known_pair(beta, power, expected):
  _close(losses.flow_dpo(*PAIR, TIME, beta=beta, power=power), [expected])


def test_values_of_a_known_latent():
  target = NOISE - CHOSEN
  velocity = target + _latents([[0.1, -0.1, 0, 0.2]])
  _close(losses.flow_value(velocity, CHOSEN, NOISE), [-0.06 / 4 / 2])
  # The other way round, latent - noise, it is no error but twice the velocity.
  assert losses.flow_value(velocity, NOISE, CHOSEN)[0] < -1


_flow_dpo = jax.jit(losses.flow_dpo)
_number = st.floats(-2, 2, width=32)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(_number, _number, st.floats(0, 1, width=32))
def test_constant_strength_is_dpo(chosen, rejected, time):
  chosen, rejected, time = (_f32([x]) for x in (chosen, rejected, time))
  ours = _flow_dpo(chosen, rejected, time, beta=3.0)
  _close(ours, losses.dpo(chosen, rejected, beta=3.0), rtol=1e-6)


@pytest.mark.parametrize("time", [0.0, 0.3, 0.9])
def test_power_2_is_diffusion_dpo_on_the_noise(time):
  """A velocity v predicts the noise x_t + (1 - t) v."""
  rng = np.random.default_rng(0)
  noise, *rest = map(_f32, rng.normal(size=(7, 5, 3, 3, 2)))
  chosen, rejected, velocities = rest[0], rest[1], rest[2:]
  flow, diffusion = [], []
  for latent, (model, ref) in [
    (chosen, velocities[:2]),
    (rejected, velocities[2:]),
  ]:
    flow.append(losses.flow_logratio(model, ref, latent, noise))
    noised = (1 - time) * latent + time * noise
    predicted = [noised + (1 - time) * v for v in (model, ref)]
    diffusion.append(losses.denoising_logratio(*predicted, noise))
  ours = losses.flow_dpo(*flow, jnp.full(5, time), beta=1, power=2)
  # Measured: 2e-7.
  _close(ours, losses.dpo(*diffusion, beta=1))


@pytest.mark.parametrize("power", [0, 2])
def test_flow_dpo_in_torch(power):
  rng = np.random.default_rng(0)
  latent, ref, shift = rng.normal(size=(3, 2, 6, 3, 3, 2))
  noise = rng.normal(size=(6, 3, 3, 2))
  time = rng.uniform(size=6)
  velocity = torch.tensor(ref + 0.3 * shift, requires_grad=True)
  target = torch.tensor(noise - latent)
  error = ((velocity - target) ** 2).mean(dim=(2, 3, 4))
  ref_error = ((torch.tensor(ref) - target) ** 2).mean(dim=(2, 3, 4))
  gap = (error[0] - ref_error[0]) - (error[1] - ref_error[1])
  theirs = F.softplus(0.5 * 7 * (1 - torch.tensor(time)) ** power * gap)
  theirs.sum().backward()

  def ours(velocity):
    pair = [
      losses.flow_logratio(
        velocity[i], _f32(ref[i]), _f32(latent[i]), _f32(noise)
      )
      for i in range(2)
    ]
    return losses.flow_dpo(*pair, _f32(time), beta=7, power=power)

  given = _f32(ref + 0.3 * shift)
  # Measured: 3e-7 of the value; the gradient, up to 0.5, to 3e-7.
  _close(ours(given), theirs.detach())
  grads = jax.grad(lambda v: jnp.sum(ours(v)))(given)
  _close(grads, velocity.grad, atol=1e-6)


def test_swapping_a_pair():
  forward = losses.flow_dpo(*PAIR, TIME, beta=100, power=2)
  backward = losses.flow_dpo(*PAIR[::-1], TIME, beta=100, power=2)
  _close(backward - forward, 100 * 0.49 * (PAIR[0] - PAIR[1]))


def test_pure_noise_has_no_gradient_at_power_2():
  """And ends of time give numbers, also to a power that is learned."""
  ends = _f32([0.0, 1.0])
  pair = _f32([0.3, 0.3]), _f32([-0.1, -0.1])
  total = lambda x, p: jnp.sum(losses.flow_dpo(x, pair[1], ends, power=p))
  grad, by_power = jax.grad(total, argnums=(0, 1))(pair[0], 2.0)
  assert grad[0] < 0
  assert grad[1] == 0
  assert np.isfinite(by_power)
  loss = losses.flow_dpo(*pair, ends, power=2)
  _close(loss[1], np.log(2), rtol=1e-7)


VELOCITY = _latents([[0.5, -1], [1, 0], [-0.5, 0.5]])
PREDICTED = _latents([[0.4, -0.8], [0.7, 0.1], [-0.5, 0.9]])
SCORE = _f32([0.5, -0.2, 1])


def test_flow_rwr_of_known_velocities():
  error = losses.denoising_error(PREDICTED, VELOCITY)
  ours = jnp.mean(losses.flow_rwr(error, SCORE))
  _close(ours, 0.0998723719)
  _close(2 * ours, 0.1997447438)  # sums over two elements
  value = losses.flow_value(PREDICTED, -VELOCITY, jnp.zeros_like(VELOCITY))
  _close(-2 * value, error, rtol=1e-6)


def test_flow_rwr_keeps_the_exponential_that_later_code_drops():
  """Raw scores as weights, of which one is negative here, give .0275."""
  error = losses.denoising_error(PREDICTED, VELOCITY)
  _close(jnp.mean(SCORE * error), 0.0275)
  _close(jnp.mean(losses.flow_rwr(error, SCORE)), 0.0998723719)


def test_flow_rwr_in_torch():
  rng = np.random.default_rng(0)
  given = np.abs(rng.normal(size=(2, 8))).astype(np.float32)
  error, score = (
    torch.tensor(x.astype(np.float64), requires_grad=True) for x in given
  )
  theirs = torch.exp(score / 0.4) * error
  theirs.sum().backward()
  loss = lambda *x: losses.flow_rwr(*x, beta=0.4)
  pair = _f32(given[0]), _f32(given[1])
  # Measured: 2e-7 of the value, 3e-7 of the gradient.
  _close(loss(*pair), theirs.detach(), rtol=2e-6)
  grads = jax.grad(lambda *x: jnp.sum(loss(*x)), argnums=(0, 1))(*pair)
  _close(grads[0], error.grad, rtol=2e-6)
  _close(grads[1], score.grad, rtol=2e-6)


def test_flow_rwr_cuts_the_exponent_at_60():
  one = jnp.ones(3)
  weights = losses.flow_rwr(one, _f32([60.0, 61.0, 1e4]))
  # exp(60) is rounded by its exponent's last digit, 4e-6.
  _close(weights, np.full(3, np.exp(60)))


@pytest.mark.parametrize(
  "function",
  [losses.flow_value, losses.flow_logratio],
  ids=lambda f: f.__name__,
)
def test_examples_of_adapters_run(function):
  finder = doctest.DocTestFinder(recurse=False)
  names = {"jnp": jnp, function.__name__: function}
  (test,) = finder.find(inspect.unwrap(function), "example", globs=names)
  result = doctest.DocTestRunner().run(test)
  assert result.attempted > 0
  assert not result.failed
