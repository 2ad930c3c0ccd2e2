"""Denoising errors as values, against torch and papers' numbers."""

import doctest
import inspect
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxpref import losses


def _latents(rows):
  """One latent of one row of pixels and one channel each."""
  return jnp.asarray(rows, jnp.float32)[..., None, :, None]


# Two pairs of images of four elements: what was predicted, and the noise.
NOISE = _latents([[1, -1, 0.5, 0], [0, 2, -1, 1]])
CHOSEN = _latents([[0.9, -0.8, 0.5, 0.1], [0.2, 1.5, -0.9, 1.1]])
REJECTED = _latents([[0.7, -0.6, 0.2, 0.3], [0.1, 1.8, -1.2, 0.9]])
REF_CHOSEN = _latents([[0.8, -0.7, 0.4, 0.1], [0.1, 1.6, -1, 1.2]])
REF_REJECTED = _latents([[0.7, -0.7, 0.3, 0.2], [0.2, 1.7, -1.1, 0.8]])
CHOSEN_LOGRATIO = losses.denoising_logratio(CHOSEN, REF_CHOSEN, NOISE)
REJECTED_LOGRATIO = losses.denoising_logratio(REJECTED, REF_REJECTED, NOISE)


def _close(ours, theirs, rtol=1e-5, **kwargs):
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


def test_errors_and_values_of_known_latents():
  for prediction, expected in [
    (CHOSEN, [0.015, 0.0775]),
    (REJECTED, [0.1075, 0.025]),
    (REF_CHOSEN, [0.0375, 0.0525]),
    (REF_REJECTED, [0.065, 0.045]),
  ]:
    _close(losses.denoising_error(prediction, NOISE), expected)
    _close(losses.denoising_value(prediction, NOISE), -np.array(expected) / 2)


@pytest.mark.parametrize(
  ("beta", "expected"),
  [
    (10, [0.543792604, 0.811962002]),
    (100, [0.0380413717, 2.3502065589]),
  ],
)
def test_dpo_of_denoising_logratios_is_diffusion_dpo(beta, expected):
  loss = losses.dpo(CHOSEN_LOGRATIO, REJECTED_LOGRATIO, beta=beta)
  _close(loss, expected)


def test_diffusion_dpo_at_a_realistic_scale():
  """Errors of .1, .12 and of the reference .1002, .1198 at beta 5000."""
  chosen, rejected = jnp.array([1e-4]), jnp.array([-1e-4])
  _close(losses.dpo(chosen, rejected, beta=5000), [0.3132616875])


def test_other_pairwise_losses_take_the_same_values():
  """Diffusers' hinge and IPO have no half: their logits are twice ours."""
  pair = CHOSEN_LOGRATIO, REJECTED_LOGRATIO
  _close(jnp.mean(losses.hinge(*pair, beta=2 * 50)), 1.625)
  _close(jnp.mean(4 * losses.ipo(*pair, beta=2 * 50)), 0.003025)
  # By hand: ((1 - e) (-log σ(m)) - e (-log σ(-m))) / (1 - 2e), m = .325, -.225.
  kept, swapped = (
    np.array([0.5437926, 0.811962]),
    np.array([0.868793, 0.586962]),
  )
  robust = losses.robust_dpo(*pair, beta=10, label_smoothing=0.1)
  _close(robust, (0.9 * kept - 0.1 * swapped) / 0.8)


def test_lists_of_latents_give_the_values_of_listwise_losses():
  """RankDPO on four images of known differences of the mean squared error."""
  s = np.array([-0.002, 0.001, 0.0005, -0.001])
  noise = jnp.zeros((1, 4, 1, 1, 1))
  error = jnp.sqrt(jnp.asarray(0.1 + s, jnp.float32)).reshape(noise.shape)
  ref_error = jnp.sqrt(jnp.full(noise.shape, 0.1))
  values = losses.denoising_logratio(error, ref_error, noise)
  # Rounded roots move the log-ratios by 1e-5 of themselves.
  _close(values[0], -s / 2, rtol=1e-4)
  scores = jnp.array([[1 / 15, 0.6, 0.4, 13 / 15]])
  valid = jnp.ones((1, 4), bool)
  for name in ("plackett_luce", "all_pairs", "listwise_softmax"):
    loss = losses.get(name)
    through = loss(values, scores, valid, beta=1000)
    direct = loss(
      jnp.asarray(-s[None] / 2, jnp.float32), scores, valid, beta=1e3
    )
    _close(through, direct, rtol=1e-4)
  loss = losses.rank_dpo(values, scores, valid, beta=1000)
  _close(loss, [1.1146866980], rtol=1e-4)


def test_mapo_takes_the_errors():
  errors = [losses.denoising_error(x, NOISE) for x in (CHOSEN, REJECTED)]
  _close(jnp.mean(losses.mapo(*errors)), 0.6968947977)
  _close(jnp.mean(losses.mapo_paper(*errors)), 0.1293703383)


def test_gradient_by_a_prediction():
  def mean(prediction):
    chosen = losses.denoising_logratio(prediction, REF_CHOSEN, NOISE)
    return jnp.mean(losses.dpo(chosen, REJECTED_LOGRATIO, beta=100))

  _close(jax.grad(mean)(CHOSEN)[0, 0, 0, 0], -0.0466586092)


@pytest.mark.parametrize("seed", [0, 1])
def test_diffusion_dpo_in_torch(seed):
  """The authors' batch: chosen then rejected, noise shared, four means."""
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=(3, 4, 4, 2))
  ref = noise + rng.normal(size=(2, 3, 4, 4, 2))
  model = ref + 0.1 * rng.normal(size=ref.shape)

  prediction = torch.tensor(model, requires_grad=True)
  error = ((prediction - torch.tensor(noise)) ** 2).mean(dim=(-3, -2, -1))
  ref_error = torch.tensor(((ref - noise) ** 2).mean(axis=(-3, -2, -1)))
  model_diff, ref_diff = error[0] - error[1], ref_error[0] - ref_error[1]
  theirs = -F.logsigmoid(-0.5 * 20 * (model_diff - ref_diff))
  theirs.sum().backward()

  def ours(prediction):
    pair = [
      losses.denoising_logratio(prediction[i], _f32(ref[i]), _f32(noise))
      for i in range(2)
    ]
    return losses.dpo(*pair, beta=20)

  # Measured: 4e-7 of the value; the gradient, up to 0.5, to 2e-7.
  _close(ours(_f32(model)), theirs.detach())
  grads = jax.grad(lambda x: jnp.sum(ours(x)))(_f32(model))
  _close(grads, prediction.grad, atol=1e-6)


def test_a_logratio_rounds_less_than_the_difference_of_values():
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(4, 64, 64, 4)).astype(np.float32)
  ref = noise + 0.3 * rng.normal(size=noise.shape).astype(np.float32)
  model = ref + 1e-3 * rng.normal(size=noise.shape).astype(np.float32)
  wide = [x.astype(np.float64) for x in (model, ref, noise)]
  errors = [((x - wide[2]) ** 2).mean(axis=(1, 2, 3)) for x in wide[:2]]
  exact = (errors[1] - errors[0]) / 2
  ours = losses.denoising_logratio(*map(_f32, (model, ref, noise)))
  values = [losses.denoising_value(_f32(x), _f32(noise)) for x in (model, ref)]
  noise_of_ours = np.abs(ours - exact).max()
  # Measured: 3e-13 and 3e-9; at a beta of 5000 that is 2e-9 and 2e-5.
  assert noise_of_ours < 1e-11
  assert noise_of_ours < 1e-2 * np.abs(values[0] - values[1] - exact).max()


def test_equal_models_have_a_logratio_of_exactly_zero():
  logratio = losses.denoising_logratio(CHOSEN, CHOSEN, NOISE)
  np.testing.assert_array_equal(logratio, np.zeros(2))


def test_a_video_is_the_mean_of_its_frames():
  rng = np.random.default_rng(0)
  shape = (2, 5, 3, 4, 2)  # videos, frames, y, x, c
  model, ref, noise = (rng.normal(size=shape) for _ in range(3))
  whole = [((x - noise) ** 2).mean(axis=(1, 2, 3, 4)) for x in (model, ref)]
  frames = losses.denoising_logratio(*map(_f32, (model, ref, noise)))
  assert frames.shape == (2, 5)
  _close(frames.mean(axis=-1), (whole[1] - whole[0]) / 2)


def test_latents_of_two_axes_or_of_other_dtypes_are_refused():
  with pytest.raises(TypeCheckError):
    losses.denoising_value(jnp.zeros((4, 4)), jnp.zeros((4, 4)))
  with pytest.raises(TypeCheckError):
    losses.denoising_value(CHOSEN, NOISE[:1])
  with pytest.raises(TypeCheckError):
    losses.denoising_logratio(CHOSEN, CHOSEN.astype(jnp.bfloat16), NOISE)


def test_a_step_of_the_euler_ancestral_sampler():
  """From sigma 2 to 1: variance 3/4, mean x - 1.5 noise."""
  x = _latents([[2, -1, 0.5, 1], [1, 1, -2, 0]])
  noise = _latents([[0.5, -0.4, 0.2, 0.6], [0.4, 0.5, -0.9, 0.1]])
  ref_noise = _latents([[0.6, -0.4, 0.1, 0.6], [0.3, 0.5, -0.8, 0.1]])
  reached = _latents([[1, 0, 0.3, -0.2], [0.2, 0.6, -0.3, -0.5]])
  mean, ref_mean = x - 1.5 * noise, x - 1.5 * ref_noise
  std = jnp.full(2, math.sqrt(0.75))
  logp = losses.denoising_step_logp(reached, mean, std)
  _close(logp, [-0.8288474970, -0.8430141636])
  ref_logp = losses.denoising_step_logp(reached, ref_mean, std)
  _close(ref_logp, [-0.8188474970, -0.8780141636])
  logratio = losses.denoising_step_logratio(reached, mean, ref_mean, std)
  _close(logratio, [-0.01, 0.035])


def test_a_step_of_the_renoising_sampler():
  """From ᾱ .25 to .64: the predicted latent, noised anew."""
  x, noise = _latents([[1, -0.5]]), _latents([[0.6, -0.2]])
  mean = 0.8 * (x - math.sqrt(0.75) * noise) / 0.5
  _close(mean[0, 0, :, 0], [0.7686156124, -0.5228718708])
  logp = losses.denoising_step_logp(
    _latents([[0.5, -0.4]]), mean, jnp.array([0.6])
  )
  _close(logp, [-0.4687044677])


def test_steps_in_torch():
  rng = np.random.default_rng(0)
  reached, mean, ref_mean = rng.normal(size=(3, 2, 5, 3, 3, 2))
  std = rng.uniform(0.3, 2.0, size=(2, 5))
  given = torch.tensor(mean, requires_grad=True)
  wide = torch.tensor(std)[..., None, None, None]
  logp, ref_logp = (
    torch.distributions.Normal(each, wide)
    .log_prob(torch.tensor(reached))
    .mean(dim=(-3, -2, -1))
    for each in (given, torch.tensor(ref_mean))
  )
  (logp - ref_logp).sum().backward()
  arrays = [_f32(x) for x in (reached, mean, ref_mean, std)]
  # Measured: 1e-7 of the log-density; 2e-7 of ratios and gradients near 1.
  ours = losses.denoising_step_logp(arrays[0], arrays[1], arrays[3])
  _close(ours, logp.detach())
  ours = losses.denoising_step_logratio(*arrays)
  _close(ours, (logp - ref_logp).detach(), atol=1e-6)
  total = lambda m: jnp.sum(
    losses.denoising_step_logratio(arrays[0], m, *arrays[2:])
  )
  _close(jax.grad(total)(arrays[1]), given.grad, atol=1e-6)


def _smpo_in_torch(chosen, rejected, chosen_score, rejected_score, beta):
  """The authors' steps: normalised scores, their softmax, a factor of 10."""
  low, high = 0.11543526500463486, 0.28201571106910706
  normal = [(x - low) / (high - low) for x in (chosen_score, rejected_score)]
  p = torch.softmax(torch.stack(normal), dim=0)[0]
  return -F.logsigmoid(10 * (2 * p - 1) * beta * (chosen - rejected))


@pytest.mark.parametrize(
  ("beta", "expected"), [(2000, 0.6405904603), (5000, 0.5672000760)]
)
def test_smpo_of_a_known_pair(beta, expected):
  """Errors of .1, .12 and of the reference .1002, .1198."""
  x = jnp.array([[1e-4], [-1e-4], [0.2210], [0.2120]])
  _close(losses.smpo(*x, beta=beta), [expected])


@pytest.mark.parametrize(
  ("scores", "factor"),
  [
    ((0.2210, 0.2120), 0.2700740569),
    ((0.28201571106910706, 0.11543526500463486), 4.6211715726),
    ((0.2, 0.2), 0.0),
  ],
)
def test_smpo_is_dpo_of_another_strength(scores, factor):
  pair = jnp.array([0.7]), jnp.array([-0.4])
  ours = losses.smpo(*pair, *jnp.array(scores)[:, None], beta=0.3)
  _close(ours, losses.dpo(*pair, beta=0.3 * factor))


def test_smpo_in_torch():
  rng = np.random.default_rng(0)
  given = np.concatenate(
    [1e-3 * rng.normal(size=(2, 9)), rng.uniform(0.12, 0.28, size=(2, 9))]
  ).astype(np.float32)
  inputs = [
    torch.tensor(x.astype(np.float64), requires_grad=True) for x in given
  ]
  theirs = _smpo_in_torch(*inputs, beta=5000)
  theirs.sum().backward()
  # Measured: 1e-6 of the value, 3e-6 of the gradient.
  _close(losses.smpo(*map(_f32, given)), theirs.detach())
  total = lambda *x: jnp.sum(losses.smpo(*x))
  grads = jax.grad(total, argnums=(0, 1, 2, 3))(*map(_f32, given))
  for ours, each in zip(grads, inputs, strict=True):
    _close(ours, each.grad, rtol=2e-5)


def test_equal_scores_have_no_gradient_in_smpo():
  score = jnp.array([0.2, 0.21])
  total = lambda x: jnp.sum(losses.smpo(x, -x, score, score))
  value, grad = jax.value_and_grad(total)(jnp.array([0.3, -2.0]))
  _close(value, 2 * np.log(2))
  np.testing.assert_array_equal(grad, np.zeros(2))


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_scores_of_no_range_are_refused(wrong):
  x = jnp.ones(1)
  with pytest.raises(ValueError, match="score_range is"):
    losses.smpo(x, x, x, x, score_range=wrong)


_smpo = jax.jit(losses.smpo)
_number = st.floats(-3, 3, width=32)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(_number, _number, _number, _number)
def test_turning_a_pair_around_with_its_scores_leaves_smpo(a, b, s, t):
  a, b, s, t = (jnp.array([x], jnp.float32) for x in (a, b, s, t))
  _close(_smpo(a, b, s, t), _smpo(b, a, t, s), rtol=1e-6)


@pytest.mark.parametrize(
  "function",
  [
    losses.denoising_error,
    losses.denoising_value,
    losses.denoising_logratio,
    losses.denoising_step_logp,
    losses.denoising_step_logratio,
  ],
  ids=lambda f: f.__name__,
)
def test_examples_of_adapters_run(function):
  finder = doctest.DocTestFinder(recurse=False)
  names = {"jnp": jnp, function.__name__: function}
  (test,) = finder.find(inspect.unwrap(function), "example", globs=names)
  result = doctest.DocTestRunner().run(test)
  assert result.attempted > 0
  assert not result.failed


def _f32(x):
  return jnp.asarray(x, jnp.float32)
