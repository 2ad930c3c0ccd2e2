"""Every sampler beside its diffusers scheduler, state by state."""

import functools
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from jaxpref.errors import UserError
from jaxpref.models.sdxl.scheduler import Scheduler, scheduler_from
from jaxpref.sample import samplers
from jaxpref.sample.denoise import (
  denoise,
  denoise_trajectory,
  step_logp,
  step_mean,
)

# Of diffusers, which makes NumPy arrays of torch's.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

SHAPE, STEPS = (2, 4, 4, 4), 20
SDXL = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "steps_offset": 1,
}
RANDOM = np.random.default_rng(0)
# Near the identity: the noise is most of x where there is much of it.
MIX = (np.eye(4) + 0.1 * RANDOM.normal(size=(4, 4))).astype(np.float32)
NOISE = RANDOM.normal(size=(STEPS + 1, *SHAPE)).astype(np.float32)


def scheduler_of(name, config):
  return scheduler_from({"_class_name": name, **config}, source="test")


def ours(sampler, prediction):
  """[steps + 1, images, y, x, c]: each state of the sampler."""
  start = sampler.start * jnp.asarray(NOISE[0])
  return _trajectory(prediction, sampler.steps, start, NOISE[1:]).latents


@functools.partial(jax.jit, static_argnums=0)
def _trajectory(prediction, steps, start, noise):
  return denoise_trajectory(
    lambda x, t: jnp.tanh(x @ MIX + t / 1000.0),
    steps,
    start,
    prediction=prediction,
    draw=lambda number: noise[number],
  )


def theirs(name, config, monkeypatch, **keywords):
  """The same of diffusers, in units in which the variance is kept."""
  scheduler = getattr(diffusers, name)(**config)
  fresh = iter(torch.tensor(NOISE[1:]))
  module = sys.modules[type(scheduler).__module__]
  if hasattr(module, "randn_tensor"):
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(fresh))
  scheduler.set_timesteps(STEPS)
  x, scales = torch.tensor(NOISE[0]), torch.ones(STEPS + 1)
  if hasattr(scheduler, "init_noise_sigma"):  # not of flow models
    x = x * scheduler.init_noise_sigma
    if "Euler" in name:
      scales = (scheduler.sigmas**2 + 1) ** -0.5
  states = [x * scales[0]]
  for number, t in enumerate(scheduler.timesteps):
    scaled = x
    if hasattr(scheduler, "scale_model_input"):
      scaled = scheduler.scale_model_input(x, t)
    output = torch.tanh(scaled @ torch.tensor(MIX) + t / 1000.0)
    x = scheduler.step(output, t, x, return_dict=False, **keywords)[0]
    states.append(x * scales[number + 1])
  return np.stack(states)


def without(column):
  """A mutation: one column of the table is zero."""

  def mutate(sampler, scheduler):
    del scheduler
    zero = 0.0 * getattr(sampler.steps, column)
    return sampler._replace(steps=sampler.steps._replace(**{column: zero}))

  return mutate


def instead(make, **keywords):
  """A mutation: another sampler."""
  return lambda sampler, scheduler: make(scheduler, STEPS, **keywords)


DDIM = "DDIMScheduler"
EULER = "EulerDiscreteScheduler"
SOLVER = "DPMSolverMultistepScheduler"
LATENT = {"clip_sample": False}
KARRAS = {"use_karras_sigmas": True}
FEW = {"original_inference_steps": 100}
eta = functools.partial(samplers.ddim, eta=0.7)
# The class, its settings, our sampler, and a mistake that must show.
CASES = {
  "ddpm": ("DDPMScheduler", LATENT, samplers.ddpm, without("std")),
  "ddim": (DDIM, LATENT, samplers.ddim, instead(samplers.ddpm)),
  "ddim_to_first": (
    DDIM,
    {**LATENT, "set_alpha_to_one": False},
    samplers.ddim,
    instead(samplers.ddim, eta=0.1),
  ),
  "ddim_eta": (DDIM, LATENT, eta, instead(samplers.ddim, eta=0.6)),
  "euler": (EULER, {}, samplers.euler, instead(samplers.dpmpp_2m)),
  "euler_karras": (EULER, KARRAS, samplers.euler, instead(samplers.ddim)),
  "ancestral": (
    "EulerAncestralDiscreteScheduler",
    {},
    samplers.euler_ancestral,
    instead(samplers.euler),
  ),
  "solver": (SOLVER, {}, samplers.dpmpp_2m, without("extrapolate")),
  "solver_karras": (SOLVER, KARRAS, samplers.dpmpp_2m, without("extrapolate")),
  "lcm": ("LCMScheduler", FEW, samplers.lcm, instead(samplers.tcd)),
  "tcd": ("TCDScheduler", FEW, samplers.tcd, instead(samplers.tcd, gamma=0.25)),
}
# Float32 on both sides. The largest differences seen were 3e-5 for epsilon,
# where states reach 30, and 3e-6 for v.
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("case", CASES)
def test_each_state_is_that_of_diffusers(
  case, prediction, spacing, monkeypatch
):
  name, settings, make, mutate = CASES[case]
  config = {**SDXL, **settings, "prediction_type": prediction}
  config["timestep_spacing"] = spacing
  scheduler = scheduler_of(name, config)
  sampler = make(scheduler, STEPS)
  keywords = {"eta": 0.7} if case == "ddim_eta" else {}
  expected = theirs(name, config, monkeypatch, **keywords)
  np.testing.assert_allclose(ours(sampler, prediction), expected, **CLOSE)
  wrong = ours(mutate(sampler, scheduler), prediction)
  assert np.abs(wrong - expected).max() > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_diffusers(shift, monkeypatch):
  name = "FlowMatchEulerDiscreteScheduler"
  expected = theirs(name, {"shift": shift}, monkeypatch)
  scheduler = scheduler_of(name, {"shift": shift})
  found = ours(samplers.flow_euler(scheduler, STEPS), "flow")
  np.testing.assert_allclose(found, expected, **CLOSE)
  other = scheduler_of(name, {"shift": shift + 0.1})
  wrong = ours(samplers.flow_euler(other, STEPS), "flow")
  assert np.abs(wrong - expected).max() > 1e-3


@pytest.mark.parametrize("case", ["ddim", "ddim_eta", "euler", "ancestral"])
def test_from_noise_without_any_signal(case, monkeypatch):
  name, settings, make, _ = CASES[case]
  config = {**SDXL, **settings, "prediction_type": "v_prediction"}
  config |= {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
  keywords = {"eta": 0.7} if case == "ddim_eta" else {}
  expected = theirs(name, config, monkeypatch, **keywords)
  sampler = make(scheduler_of(name, config), STEPS)
  np.testing.assert_allclose(ours(sampler, "v_prediction"), expected, **CLOSE)
  # Euler starts just below, as diffusers does.
  assert sampler.steps.alpha[0] == (0.0 if "ddim" in case else 2.0**-12)
  plain = make(
    scheduler_of(name, {**config, "rescale_betas_zero_snr": False}), STEPS
  )
  wrong = ours(plain, "v_prediction")
  assert np.abs(wrong - expected).max() > 1e-3


@pytest.mark.parametrize("name", ["euler", "ddim", "lcm", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_other_numbers_of_steps(name, steps):
  """The timesteps and the end of diffusers, for steps that divide badly."""
  cls = {
    "euler": EULER,
    "ddim": DDIM,
    "lcm": "LCMScheduler",
    "dpmpp_2m": SOLVER,
  }
  config = {**SDXL, "timestep_spacing": "trailing"}
  config |= LATENT if name == "ddim" else {}
  scheduler = getattr(diffusers, cls[name])(**config)
  scheduler.set_timesteps(steps)
  sampler = samplers.make_sampler(name, scheduler_of(cls[name], config), steps)
  np.testing.assert_array_equal(sampler.steps.timestep, scheduler.timesteps)
  assert len(sampler.steps.std) == steps
  assert sampler.steps.std[-1] == 0.0


def test_without_fresh_noise_the_trajectory_ends_where_denoise_does():
  sampler = samplers.dpmpp_2m(Scheduler(), STEPS)
  predict = lambda x, t: jnp.tanh(x @ MIX + t / 1000.0)
  end = jax.jit(
    lambda noise: denoise(predict, sampler.steps, noise, prediction="epsilon")
  )(NOISE[0])
  np.testing.assert_allclose(end, ours(sampler, "epsilon")[-1], **CLOSE)


def test_log_density_of_each_step_is_the_normal_one():
  """Against SciPy's, from DDIM's equations written out in float64."""
  scheduler = Scheduler(set_alpha_to_one=True)
  sampler = samplers.ddim(scheduler, STEPS, eta=0.7)
  path = _trajectory("epsilon", sampler.steps, NOISE[0], NOISE[1:])
  x = np.asarray(path.latents, np.float64)
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  power = np.append(np.cumprod(1 - betas), 1.0)  # [-1]: no noise
  for number in (0, 7, 18):
    t = 951 - 50 * number
    now, then = power[t], power[t - 50]
    eps = np.tanh(x[number] @ MIX + t / 1000)
    std = 0.7 * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    latent = (x[number] - np.sqrt(1 - now) * eps) / np.sqrt(now)
    mean = np.sqrt(then) * latent + np.sqrt(1 - then - std**2) * eps
    density = scipy.stats.norm(mean, std).logpdf(x[number + 1])
    # States reach 30, and a rounding of 1e-6 is 1e-5 of a std of 0.1.
    np.testing.assert_allclose(
      path.logp[number], density.mean((1, 2, 3)), atol=1e-3
    )
  assert (np.asarray(path.logp[-1]) == 0.0).all()  # lands without noise
  # The states alone give the same again, as training does it.
  step = samplers.Step(*(column[7] for column in sampler.steps))
  output = jnp.tanh(path.latents[7] @ MIX + step.timestep / 1000.0)
  mean = step_mean("epsilon", output, path.latents[7], step)
  again = step_logp(path.latents[8], mean, step)
  np.testing.assert_allclose(again, path.logp[7], atol=1e-4)


def test_turbos_step_is_psos():
  """The vector of Pairwise Sample Optimization, from sigma 2 to 1."""
  power = np.array([1 / 5, 1 / 2])
  step = samplers.steps_between(np.zeros(1), power[:1], power[1:], 1.0)
  step = samplers.Step(*(column[0] for column in step))
  latents = lambda *x: jnp.array(x, jnp.float32).reshape(1, 1, 1, 4)
  noisy = latents(2, -1, 0.5, 1) / 5**0.5
  landed = latents(1, 0, 0.3, -0.2) / 2**0.5
  mean = step_mean("epsilon", latents(0.5, -0.4, 0.2, 0.6), noisy, step)
  np.testing.assert_allclose(
    mean * 2**0.5, latents(1.25, -0.4, 0.2, 0.1), atol=1e-6
  )
  # Their units of length are 1 / alpha of ours, and so is the density's.
  logp = step_logp(landed, mean, step) - 0.5 * np.log(2)
  np.testing.assert_allclose(logp, [-0.8288474970], atol=1e-6)
  np.testing.assert_allclose(step.std * 2**0.5, 0.75**0.5, rtol=1e-6)


def test_start_from_an_image_takes_the_last_steps():
  whole = samplers.dpmpp_2m(Scheduler(), 10)
  part = samplers.started_at(whole, 0.35)
  np.testing.assert_array_equal(part.steps.alpha, whole.steps.alpha[7:])
  assert part.start == whole.steps.sigma[7]
  assert part.steps.extrapolate[0] == 0.0 < whole.steps.extrapolate[7]
  with pytest.raises(UserError, match="takes 0 of 10"):
    samplers.started_at(whole, 0.05)


@pytest.mark.parametrize(
  ("name", "config", "steps", "words"),
  [
    ("eular", {}, 20, "Did you mean 'euler'"),
    ("euler", {}, 0, "steps is 0"),
    ("euler", {}, 1001, "at most 1000"),
    ("ddim", {}, 1000, "steps_offset of 1"),
    ("lcm", {}, 51, "at most the 50"),
    ("flow_euler", {}, 20, "for flow models"),
    ("euler", {"prediction_type": "flow"}, 20, "for flow models"),
    (
      "ddim",
      {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
      20,
      "without any signal",
    ),
  ],
)
def test_what_cannot_be_sampled(name, config, steps, words):
  with pytest.raises(UserError, match=words):
    samplers.make_sampler(name, Scheduler(**config), steps)
