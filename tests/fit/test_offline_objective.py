"""The objective of noised steps, against torch on the same tensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.loss import check_suits, find_loss, is_online
from jaxpref.fit.noising import noise_steps
from jaxpref.fit.offline_objective import check_noised_steps, offline_objective
from jaxpref.fit.rollout import noisy_sampler
from jaxpref.models.build import define
from jaxpref.models.sdxl.parts import load_part, read_part
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.models.weights import at
from jaxpref.types import Comparisons, ImageBatch, Lists, Slots

LN2 = np.log(2.0)
# As SDXL-Turbo's folder has it.
TURBO = Scheduler(timestep_spacing="trailing", sampler="euler_ancestral")
# Of its four steps, in units of a signal of power 1.
SIGMAS = (14.6146412, 4.0817294, 1.6128862, 0.6932049)


@pytest.fixture(scope="module")
def unet(sd_folder):
  """The definition of a tiny UNet, its weights, and diffusers' own, twice."""
  import diffusers

  folder = sd_folder / "unet"
  definition = define(read_part(folder), dtype="float32")
  load = diffusers.UNet2DConditionModel.from_pretrained
  models = [load(folder).double() for _ in range(2)]
  return definition, load_part(folder, definition), models


def _settings(name="pso_offline", **sections):
  given = {
    "model": {"family": "sdxl"},
    "loss": {"name": name},
    "sample": {"steps": 4, "guidance": 1.0},
  }
  for section, values in sections.items():
    given[section] = {**given.get(section, {}), **values}
  return config.build(given)


def _batch():
  """Three pairs, of which one is soft and one is padding; a slot of padding."""
  rng = np.random.default_rng(0)
  prompt = np.array([0, 0, 1, 1, 0], np.int32)
  f32 = lambda *size: rng.normal(size=size).astype(np.float32)
  mean = f32(5, 8, 8, 4)
  mean[4] = mean[0]
  none = np.zeros(1, np.int32)
  batch = ImageBatch(
    mean=mean,
    std=np.full(mean.shape, 0.1, np.float32),
    prompt=prompt,
    item=np.array([0, 1, 0, 1, 0], np.int32),
    draw=np.zeros(5, np.int32),
    sizes=f32(5, 6),
    ref_error=None,
    context=f32(2, 7, 8),
    pooled=f32(2, 8),
    slots=Slots(
      example_id=prompt + 5,
      valid=np.arange(5) < 4,
      label=np.full(5, -1, np.int32),
      mismatched=np.zeros(5, bool),
      score=np.zeros(5, np.float32),
    ),
    comparisons=Comparisons(
      better=np.array([0, 3, 0], np.int32),
      worse=np.array([1, 2, 0], np.int32),
      valid=np.array([True, True, False]),
      weight=np.ones(3, np.float32),
      preference=np.array([1.0, 0.75, 1.0], np.float32),
    ),
    lists=Lists(none[None], none[None] > 0),
  )
  return jax.tree.map(jnp.asarray, batch)


def _noised(batch, seed=0, scheduler=TURBO, sampler="", **diffusion):
  settings = _settings(sample={"sampler": sampler})
  return noise_steps(
    batch,
    noisy_sampler(settings, scheduler),
    config.Diffusion(**diffusion),
    scheduler.prediction_type,
    seed,
  )


@pytest.mark.parametrize(
  ("kind", "sampler"),
  [
    ("epsilon", "euler_ancestral"),
    ("v_prediction", "ddpm"),
    ("sample", "tcd"),
    ("epsilon", "lcm"),
  ],
)
def test_images_are_noised_as_their_timesteps_say(kind, sampler):
  """And a step lands where the sampler does of the image itself."""
  scheduler = dataclasses.replace(TURBO, prediction_type=kind)
  # Of ten thousand numbers each, of one image and of known noise.
  big = dataclasses.replace(
    _batch(),
    mean=jnp.full((5, 50, 50, 4), 0.5),
    std=jnp.zeros((5, 50, 50, 4)),
  )
  made, target = _noised(big, scheduler=scheduler, sampler=sampler)
  count = len(made.steps.std)
  assert made.before.shape == target.shape == (5, count, 50, 50, 4)
  assert (np.array(made.steps.std) > 0).all()
  for j in range(count):
    alpha, sigma, std = (
      float(x[j]) for x in (made.steps.alpha, made.steps.sigma, made.steps.std)
    )
    noise = (np.array(made.before[0, j]) - alpha * 0.5) / sigma
    assert abs(noise.mean()) < 0.04  # of 10,000 numbers: 0.01
    assert abs(noise.std() - 1.0) < 0.03
    asked = {
      "epsilon": noise,
      "sample": np.full(noise.shape, 0.5),
      "v_prediction": alpha * noise - sigma * 0.5,
    }[kind]
    np.testing.assert_allclose(target[0, j], asked, atol=1e-4)
    mean = float(made.steps.to_latent[j]) * 0.5
    mean = mean + float(made.steps.to_noise[j]) * noise
    fresh = (np.array(made.after[0, j]) - mean) / std
    assert abs(fresh.mean()) < 0.04
    assert abs(fresh.std() - 1.0) < 0.03
    assert abs(np.mean(fresh * noise)) < 0.04
  np.testing.assert_array_equal(made.after[:, :-1], made.before[:, 1:])


def test_noise_depends_on_the_example_and_what_is_shared():
  batch = _batch()
  made, target = _noised(batch)
  # epsilon: the target is the noise, which a pair shares at every step only
  # where what the sampler adds is the same too.
  np.testing.assert_allclose(target[0, 0], target[1, 0], atol=1e-5)
  np.testing.assert_allclose(target[0], target[1], atol=1e-4)
  assert np.abs(target[0, 0] - target[2, 0]).max() > 1.0
  apart, noise = _noised(batch, share_noise=False)
  assert np.abs(noise[0, 0] - noise[1, 0]).max() > 1.0
  turn = np.array([2, 3, 0, 1, 4])
  moved = {
    name: getattr(batch, name)[turn]
    for name in ("mean", "std", "prompt", "item", "draw", "sizes")
  }
  slots = jax.tree.map(lambda x: x[turn], batch.slots)
  moved = dataclasses.replace(batch, slots=slots, **moved)
  there, _ = _noised(moved, share_noise=False)
  np.testing.assert_array_equal(np.array(apart.after)[turn], there.after)
  later = dataclasses.replace(batch, draw=batch.draw + 1)
  for other in (_noised(later)[0], _noised(batch, seed=1)[0]):
    assert np.abs(other.before - made.before).max() > 1.0


def _differentiate(objective):
  """(policy, reference, batch) -> its loss, gradient and metrics, compiled."""

  @jax.jit
  def call(policy, reference, batch):
    def loss(policy):
      roles = {"policy": policy}, {"reference": reference}
      terms, _, metrics = objective(*roles, {}, batch, jax.random.key(1))
      return terms["loss"].total / terms["loss"].count, (terms, metrics)

    (value, (terms, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
      policy
    )
    return value, grads, terms, metrics

  return call


def _torch_ratios(models, batch, made):
  """Log-ratios of Turbo's steps, and the predictions of both, in float64.

  The authors' sampler holds the signal at a power of 1.
  """
  double = lambda x: torch.tensor(np.array(x, np.float64))
  nchw = lambda x: double(x).permute(0, 3, 1, 2)
  context = double(batch.context)[np.array(batch.prompt)]
  ratios, outputs = [], []
  for j in range(3):
    here, there = SIGMAS[j : j + 2]
    up = (there**2 * (here**2 - there**2) / here**2) ** 0.5
    down = there**2 / here
    x = nchw(made.before[:, j]) * (1 + here**2) ** 0.5
    after = nchw(made.after[:, j]) * (1 + there**2) ** 0.5
    logp, asked = [], []
    time = torch.full((len(x),), 999.0 - 250.0 * j, dtype=torch.float64)
    for model in models:
      noise = model(x / (here**2 + 1) ** 0.5, time, context).sample
      mean = x + noise * (down - here)
      each = -((after - mean) ** 2) / (2 * up**2) - np.log(up)
      logp.append(each.mean(dim=(1, 2, 3)))
      asked.append(noise)
    ratios.append(logp[0] - logp[1].detach())
    outputs.append(asked)
  return torch.stack(ratios, 1), outputs


def _clipped(ratio, gain, better, worse):
  log = ratio.exp().clamp(0.9, 1.1).log()
  return -F.logsigmoid(50.0 * (log[better] - log[worse])).mean(dim=1)


def _summed(ratio, gain, better, worse):
  return -F.logsigmoid(10.0 * (gain[better] - ratio[worse]).sum(dim=1))


@pytest.mark.parametrize(
  ("name", "formula"),
  [("pso_offline", _clipped), ("pso_offline_sum", _summed)],
)
def test_loss_and_gradient_in_torch(unet, name, formula):
  definition, params, models = unet
  batch = _batch()
  rng = np.random.default_rng(1)
  policy = jax.tree.map(
    lambda x: x + 0.02 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params
  )
  objective = offline_objective(definition, _settings(name), TURBO)
  value, grads, terms, metrics = _differentiate(objective)(
    policy, params, batch
  )
  named = dict(models[0].named_parameters())
  with torch.no_grad():
    for weight in definition.table:
      leaf = np.array(at(policy, weight.path))
      leaf = weight.theirs(leaf[0] if weight.stacked else leaf)
      named[weight.name.format(0)].copy_(torch.tensor(leaf))
  models[0].zero_grad()
  made, target = _noised(batch)
  ratio, outputs = _torch_ratios(models, batch, made)
  gains = []
  for j, (ours, ref) in enumerate(outputs):
    noise = np.array(target[:, j], np.float64)
    noise = torch.tensor(noise).permute(0, 3, 1, 2)
    error = [((x - noise) ** 2).mean(dim=(1, 2, 3)) for x in (ours, ref)]
    gains.append(error[1].detach() - error[0])
  gain = torch.stack(gains, 1)
  first = formula(ratio, gain, [0], [1])[0]
  second = formula(ratio, gain, [3], [2])[0]
  turned = formula(ratio, gain, [2], [3])[0]
  their = (first + 0.75 * second + 0.25 * turned) / 2
  their.backward()
  assert terms["loss"].count == 2
  assert abs(their.item() - LN2) > 0.05
  np.testing.assert_allclose(value, their.item(), rtol=1e-5)
  assert metrics["rewards/margins"].count == 2
  if name == "pso_offline_sum":  # one logit a pair, and its sign
    margins = [(gain[i] - ratio[j]).sum().item() for i, j in ((0, 1), (3, 2))]
    np.testing.assert_allclose(
      metrics["rewards/margins"].total, 10.0 * sum(margins), rtol=1e-4
    )
    right = sum(each > 0 for each in margins)
    assert metrics["rewards/accuracies"].total == right
  assert metrics["error"].count == 4
  apart = []
  for weight in definition.table:
    ours = np.array(at(grads, weight.path))
    ours = weight.theirs(ours[0] if weight.stacked else ours)
    grad = named[weight.name.format(0)].grad.numpy()
    apart.append(np.abs(ours - grad).max() / (np.abs(grad).max() + 1e-3))
  assert max(apart) < 3e-5, max(apart)


@pytest.mark.parametrize("name", ["pso_offline", "pso_offline_sum"])
def test_the_first_loss_is_ln2_and_pulls(unet, name):
  definition, params, _ = unet
  objective = offline_objective(definition, _settings(name), TURBO)
  value, grads, _, metrics = _differentiate(objective)(params, params, _batch())
  assert abs(value - LN2) < 1e-6
  assert metrics["rewards/ties"].total == 2
  assert ("ratios/clipped" in metrics) == (name == "pso_offline")
  assert metrics["rewards/both_fell"].total == 0
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 1e-3


@pytest.mark.parametrize(
  ("sections", "says"),
  [
    ({"diffusion": {"noise_bank": 2}}, "noise_bank is 2, and .* all timesteps"),
    ({"diffusion": {"timesteps": (5,)}}, "timesteps is"),
    ({"diffusion": {"share_timestep": False}}, "share_timestep is False"),
    ({"diffusion": {"inversion_steps": 5}}, "inversion_steps is 5"),
    ({"reference": {"mode": "cached"}}, "nothing is cached"),
  ],
)
def test_settings_that_have_no_part_in_it(sections, says):
  with pytest.raises(UserError, match=says):
    check_noised_steps(_settings(**sections))


def test_what_it_is_told_apart_by():
  check_noised_steps(_settings(diffusion={"share_noise": False}))
  check_noised_steps(_settings("dpo", diffusion={"noise_bank": 2}))
  assert not is_online(find_loss(config.Loss(name="pso_offline")))
  check_suits(_settings())
  with pytest.raises(UserError, match="training on text does not have"):
    check_suits(_settings(model={"family": "llama"}))
  for option in ("damp", "nll_weight"):
    given = config.Loss(name="pso_offline_sum", options={option: 0.5})
    with pytest.raises(UserError, match=f"{option} is not an option"):
      find_loss(given)
