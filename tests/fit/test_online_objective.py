"""The objective of sampled images, against the authors' formula in torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit import image_reward
from jaxpref.fit.image_objective import predict
from jaxpref.fit.image_reward import find_reward
from jaxpref.fit.loss import check_suits
from jaxpref.fit.online_objective import online_image_objective
from jaxpref.fit.rollout import check_rollout, noisy_sampler, roll_out
from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.parts import load_part, read_part
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.models.weights import at
from jaxpref.sample.image import decode_pixels
from jaxpref.score.raters import redness
from jaxpref.types import Comparisons, ImageBatch, Lists, Slots

LN2 = np.log(2.0)
# As SDXL-Turbo's folder has it.
TURBO = Scheduler(timestep_spacing="trailing", sampler="euler_ancestral")
# Of the authors' sampler, whose states keep the signal's scale.
SIGMAS = (14.6146412, 4.0817294, 1.6128862, 0.6932049, 0.0)


@pytest.fixture(scope="module")
def parts(sd_folder):
  """UNet and autoencoder, each a definition and its weights."""
  found = {}
  for name in ("unet", "vae"):
    definition = define(read_part(sd_folder / name), dtype="float32")
    found[name] = definition, load_part(sd_folder / name, definition)
  return found


def _settings(**sections):
  given = {
    "model": {"family": "sdxl"},
    "loss": {"name": "pso"},
    "sample": {"steps": 4, "guidance": 1.0},
    "score": {"rater": "red"},
  }
  for name, section in sections.items():
    given[name] = {**given.get(name, {}), **section}
  return config.build(given)


def _batch(slots=4, padding=1):
  """A slot a prompt, and then padding."""
  rng = np.random.default_rng(0)
  valid = np.arange(slots) < slots - padding
  f32 = lambda *size: rng.normal(size=size).astype(np.float32)
  i32 = lambda x: np.where(valid, x, 0).astype(np.int32)
  number = np.arange(slots)
  none = np.zeros(1, np.int32)
  one = np.ones(1, np.float32)
  return jax.tree.map(
    jnp.asarray,
    ImageBatch(
      mean=f32(slots, 8, 8, 4),
      std=np.zeros((slots, 8, 8, 4), np.float32),
      prompt=i32(number),
      item=np.zeros(slots, np.int32),
      draw=np.zeros(slots, np.int32),
      sizes=f32(slots, 6),
      ref_error=None,
      context=f32(slots, 7, 8),
      pooled=f32(slots, 8),
      slots=Slots(
        example_id=i32(number + 5),
        valid=valid,
        label=np.full(slots, -1, np.int32),
        mismatched=np.zeros(slots, bool),
        score=np.zeros(slots, np.float32),
      ),
      comparisons=Comparisons(none, none, none > 0, one, one),
      lists=Lists(none[None], none[None] > 0),
    ),
  )


def _objective(parts, settings=None, scheduler=TURBO):
  return online_image_objective(
    parts["unet"][0],
    parts["vae"][0],
    settings or _settings(),
    scheduler,
    find_reward(config.Score(rater="red")).rate,
  )


def _differentiate(objective):
  """(policy, frozen, batch) -> its loss, gradient and metrics, compiled."""

  @jax.jit
  def call(policy, frozen, batch):
    def loss(policy):
      roles = {"policy": policy}, frozen
      terms, _, metrics = objective(*roles, {}, batch, jax.random.key(1))
      return terms["loss"].total / terms["loss"].count, (terms, metrics)

    (value, (terms, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
      policy
    )
    return value, grads, terms, metrics

  return call


def _torch_loss(models, batch, rollout, beta=50.0, clip=0.1):
  """The loss of each step of each pair: the authors' loop, in float64."""
  double = lambda x: torch.tensor(np.array(x, np.float64))
  nchw = lambda x: double(x).permute(0, 3, 1, 2)
  context = double(batch.context)[np.array(batch.prompt)].repeat_interleave(
    2, 0
  )
  made, reward = rollout.made, np.array(rollout.reward).reshape(-1, 2)
  found = []
  for j in range(3):
    here, there = SIGMAS[j : j + 2]
    up = (there**2 * (here**2 - there**2) / here**2) ** 0.5
    down = there**2 / here
    x = nchw(made.before[:, j]) * (1 + here**2) ** 0.5
    after = nchw(made.after[:, j]) * (1 + there**2) ** 0.5
    ratio = []
    for model in models:
      time = torch.full((len(x),), 999.0 - 250.0 * j, dtype=torch.float64)
      noise = model(x / (here**2 + 1) ** 0.5, time, context).sample
      mean = x + noise * (down - here)
      logp = -((after - mean) ** 2) / (2 * up**2) - np.log(up)
      ratio.append(logp.mean(dim=(1, 2, 3)))
    rho = (ratio[0] - ratio[1].detach()).exp().clamp(1 - clip, 1 + clip)
    one, two = rho.log().reshape(-1, 2).T
    sign = torch.tensor(np.where(reward[:, 0] > reward[:, 1], 1.0, -1.0))
    found.append(-F.logsigmoid(beta * sign * (one - two)))
  return torch.stack(found, 1), ratio


def test_loss_and_gradient_are_those_of_the_authors(parts, sd_folder):
  """On trajectories that the policy, which has moved, sampled itself."""
  import diffusers

  definition, params = parts["unet"]
  batch = _batch()
  rng = np.random.default_rng(1)
  policy = jax.tree.map(
    lambda x: x + 0.02 * jnp.asarray(rng.normal(size=x.shape), x.dtype), params
  )
  frozen = {"reference": params, "vae": parts["vae"][1]}
  value, grads, terms, metrics = _differentiate(_objective(parts))(
    policy, frozen, batch
  )
  rows = dataclasses.replace(batch, prompt=jnp.repeat(batch.prompt, 2))

  def ask(x, time):
    told = jnp.full(len(x), time)
    return predict(definition, policy, rows, x, told)

  vae, vae_params = parts["vae"]
  rollout = roll_out(
    ask,
    functools.partial(decode_pixels, bind(vae, vae_params)),
    redness,
    noisy_sampler(_settings(), TURBO),
    batch,
    prediction="epsilon",
    seed=0,
  )
  load = diffusers.UNet2DConditionModel.from_pretrained
  models = [load(sd_folder / "unet").double() for _ in range(2)]
  named = dict(models[0].named_parameters())
  with torch.no_grad():
    for weight in definition.table:
      leaf = np.array(at(policy, weight.path))
      assert not weight.stacked or len(leaf) == 1
      leaf = weight.theirs(leaf[0] if weight.stacked else leaf)
      named[weight.name.format(0)].copy_(torch.tensor(leaf))
  each, _ = _torch_loss(models, batch, rollout)
  # The last prompt is padding. Of three pairs, three steps each.
  assert terms["loss"].count == 9
  their = each[:3].mean()
  their.backward()
  lost = each.detach().numpy()[:3]
  assert lost.max() - lost.min() > 0.1
  assert 0.0 < metrics["ratios/clipped"].total / 3 < 1.0
  np.testing.assert_allclose(value, their.item(), rtol=1e-5)
  apart = []
  for weight in definition.table:
    ours = np.array(at(grads, weight.path))
    ours = weight.theirs(ours[0] if weight.stacked else ours)
    grad = named[weight.name.format(0)].grad.numpy()
    apart.append(np.abs(ours - grad).max() / (np.abs(grad).max() + 1e-3))
  # Measured: 7e-6, float32 beside float64.
  assert max(apart) < 3e-5, max(apart)


def test_the_first_loss_is_ln2_and_pulls(parts):
  params, vae = parts["unet"][1], parts["vae"][1]
  value, grads, _, metrics = _differentiate(_objective(parts))(
    params, {"reference": params, "vae": vae}, _batch()
  )
  assert abs(value - LN2) < 1e-6
  assert metrics["ratios/clipped"].total == 0
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) > 1e-3
  better, worse = (metrics[f"reward/{x}"] for x in ("chosen", "rejected"))
  assert better.count == worse.count == 3
  assert better.total > worse.total
  both = better.total + worse.total
  np.testing.assert_allclose(metrics["reward/mean"].total, both / 2, rtol=1e-6)


def test_images_that_are_rated_alike_pull_nowhere(parts, monkeypatch):
  def rate(pixels):
    rates = redness(pixels)
    return rates.at[:2].set(0.5)  # those of the first prompt

  monkeypatch.setattr(image_reward, "RATERS", {"red": rate})
  params, vae = parts["unet"][1], parts["vae"][1]
  policy = jax.tree.map(lambda x: 1.02 * x, params)
  frozen = {"reference": params, "vae": vae}
  differentiate = _differentiate(_objective(parts))
  batch = _batch(padding=0)

  def alone(number):
    valid = jnp.arange(4) == number
    slots = dataclasses.replace(batch.slots, valid=valid)
    return differentiate(
      policy, frozen, dataclasses.replace(batch, slots=slots)
    )

  value, grads, terms, metrics = alone(0)
  assert terms["loss"].count == 3
  assert abs(value - LN2) < 1e-7
  assert not any(jnp.any(x != 0) for x in jax.tree.leaves(grads))
  assert metrics["reward/ties"].total == 1
  assert metrics["rewards/margins"].count == 0
  value, grads, _, metrics = alone(1)
  assert abs(value - LN2) > 1e-3
  assert any(jnp.any(x != 0) for x in jax.tree.leaves(grads))
  assert metrics["reward/ties"].total == 0
  assert metrics["rewards/margins"].count == 1  # a pair, over its steps


def test_what_is_sampled_depends_on_the_example_alone(parts):
  """Not on its slot; on the seed, the draw and which of the two it is."""
  params, vae = parts["unet"][1], parts["vae"][1]
  batch, turn = _batch(), np.array([2, 0, 3, 1])
  moved = dataclasses.replace(
    batch,
    prompt=batch.prompt[turn],
    slots=jax.tree.map(lambda x: x[turn], batch.slots),
  )
  forward = jax.jit(_objective(parts).forward)
  again = jax.jit(_objective(parts, _settings(train={"seed": 1})).forward)

  def call(batch, forward=forward):
    policy = jax.tree.map(lambda x: 1.02 * x, params)
    roles = {"policy": policy}, {"reference": params, "vae": vae}
    return [np.array(x) for x in forward(*roles, batch, jax.random.key(0))]

  here, there = call(batch), call(moved)
  for one, two in zip(here, there, strict=True):
    np.testing.assert_allclose(one[turn], two, rtol=1e-5, atol=1e-6)
  _, reward = here
  assert (reward[:, 0] != reward[:, 1]).all()
  later = dataclasses.replace(batch, draw=batch.draw + 1)
  for other in (call(later), call(batch, again)):
    assert (other[1] != reward).all()


@pytest.mark.parametrize("sampler", ["lcm", "ddpm"])
def test_all_but_the_last_step_are_learned_from(parts, sampler):
  params, vae = parts["unet"][1], parts["vae"][1]
  settings = _settings(sample={"sampler": sampler, "steps": 3})
  objective = _objective(parts, settings, Scheduler())
  shapes = jax.eval_shape(
    objective.forward,
    {"policy": params},
    {"reference": params, "vae": vae},
    _batch(),
    jax.random.key(0),
  )
  assert [x.shape for x in shapes] == [(4, 2, 2), (4, 2)]


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"score": {"rater": ""}}, "Name one: a rater such as red"),
    ({"sample": {"guidance": 5.0}}, r"guidance is 5\.0. Set it to 1\.0"),
    (
      {"diffusion": {"noise_bank": 2}},
      "noise_bank is 2, .*does not noise the data's images",
    ),
    ({"diffusion": {"timesteps": (5,)}}, r"timesteps is \(5,\)"),
    ({"reference": {"mode": "cached"}}, "Set it to auto, live or base"),
  ],
)
def test_refused(changed, says):
  with pytest.raises(UserError, match=says):
    check_rollout(_settings(**changed))


def test_of_other_losses_nothing_is_asked():
  check_rollout(config.build({"loss": {"name": "dpo"}}))


@pytest.mark.parametrize(
  ("name", "steps", "says"),
  [
    ("euler", 4, "4 steps of 'euler' add none. .*to one of ddpm, .*lcm, tcd"),
    ("dpmpp_2m", 4, "'dpmpp_2m' add none"),
    ("lcm", 1, "add none.* and config.sample.steps to at least 2"),
    ("", 4, "4 steps of 'euler' add none"),
  ],
)
def test_samplers_without_noise(name, steps, says):
  settings = _settings(sample={"sampler": name, "steps": steps})
  with pytest.raises(UserError, match=says):
    noisy_sampler(settings, Scheduler())


def test_flow_models_have_no_such_sampler():
  with pytest.raises(UserError, match="There is none for flow models yet"):
    noisy_sampler(
      _settings(), Scheduler(prediction_type="flow", sampler="flow_euler")
    )


def test_a_language_model_does_not_sample_images():
  with pytest.raises(UserError, match="training on text does not have"):
    check_suits(_settings(model={"family": "llama"}))
