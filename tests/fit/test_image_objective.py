"""The objective of images, against torch on diffusers' UNet."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

from jaxpref import config, losses
from jaxpref.fit.image_objective import image_objective
from jaxpref.fit.noising import Noising, noise_images
from jaxpref.models.build import define
from jaxpref.models.sdxl.parts import load_part, read_part
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.models.weights import at
from jaxpref.types import Comparisons, ImageBatch, Lists, Slots

SCHEDULER = Scheduler()
SETTINGS = {
  "dpo": config.Loss(name="dpo", options={"beta": 5000.0}),
  "ipo": config.Loss(name="ipo", options={"beta": 50.0}),
  "mapo": config.Loss(name="mapo"),
  "smpo": config.Loss(name="smpo", options={"score_range": 5.0}),
  "rank_dpo": config.Loss(name="rank_dpo", options={"beta": 100.0}),
}


@pytest.fixture(scope="module")
def unet(sdxl_folder):
  """The definition of a tiny UNet, its weights, and diffusers' own."""
  import diffusers

  folder = sdxl_folder / "unet"
  definition = define(read_part(folder), dtype="float32")
  model = diffusers.UNet2DConditionModel.from_pretrained(folder)
  return definition, load_part(folder, definition), model


def _settings(name, **diffusion):
  return config.Config(
    loss=SETTINGS[name], diffusion=config.Diffusion(**diffusion)
  )


def _batch(groups=((0, 1), (2, 3)), padding=1):
  """Images of some prompts, the first of each the better; all are scored."""
  rng = np.random.default_rng(0)
  count = sum(map(len, groups)) + padding
  prompt = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
  prompt = np.pad(prompt, (0, padding))
  item = np.pad(
    np.concatenate([np.arange(len(g)) for g in groups]), (0, padding)
  )
  valid = np.arange(count) < count - padding
  f32 = lambda x: np.asarray(x, np.float32)
  i32 = lambda x: np.asarray(x, np.int32)
  mean = f32(rng.normal(size=(count, 8, 8, 4)))
  mean[~valid] = mean[0]
  width = max(map(len, groups))
  lists = np.zeros((len(groups), width), np.int32)
  listed = np.zeros((len(groups), width), bool)
  for i, group in enumerate(groups):
    lists[i, : len(group)], listed[i, : len(group)] = group, True
  ones = np.ones(len(groups), np.float32)
  return ImageBatch(
    mean=mean,
    std=f32(np.full(mean.shape, 0.1)),
    prompt=i32(prompt),
    item=i32(item),
    draw=np.zeros(count, np.int32),
    sizes=f32(np.tile([64, 80, 0, 8, 64, 64], (count, 1))),
    ref_error=None,
    context=f32(rng.normal(size=(len(groups), 7, 12))),
    pooled=f32(rng.normal(size=(len(groups), 8))),
    slots=Slots(
      example_id=i32(prompt + 5),
      valid=valid,
      label=np.full(count, -1, np.int32),
      mismatched=np.zeros(count, bool),
      score=f32(-item),
    ),
    comparisons=Comparisons(
      better=i32([g[0] for g in groups]),
      worse=i32([g[1] for g in groups]),
      valid=np.ones(len(groups), bool),
      weight=ones,
      preference=ones,
    ),
    lists=Lists(slot=lists, valid=listed),
  )


def _torch_errors(model, batch, asked):
  """Mean squared error of every slot, as the published scripts have it."""
  target = torch.tensor(np.array(asked.target)).permute(0, 3, 1, 2)
  out = _torch_predict(model, batch, asked.noisy, asked.timestep)
  return ((out - target) ** 2).mean(dim=(1, 2, 3))


def _torch_predict(model, batch, noisy, timestep):
  nchw = lambda x: torch.tensor(np.array(x)).permute(0, 3, 1, 2)
  told = lambda x: torch.tensor(np.array(x)[np.array(batch.prompt)])
  return model(
    nchw(noisy),
    torch.tensor(np.array(timestep)),
    told(batch.context),
    added_cond_kwargs={
      "text_embeds": told(batch.pooled),
      "time_ids": torch.tensor(np.array(batch.sizes)),
    },
  ).sample


def _diffusion_dpo(error, ref, batch):
  """Wallace et al.: train.py of the authors, for the first of each pair."""
  w, l = map(np.array, (batch.comparisons.better, batch.comparisons.worse))
  model_diff, ref_diff = error[w] - error[l], ref[w] - ref[l]
  return -F.logsigmoid(-0.5 * 5000.0 * (model_diff - ref_diff)).mean()


def _mapo(error, ref, batch):
  """Hong et al.: compute_loss of the authors."""
  w = error[np.array(batch.comparisons.better)]
  l = error[np.array(batch.comparisons.worse)]
  gain = lambda x: x / torch.expm1(x)
  margin = 1000.0 * (gain(0.5 * w) - gain(0.5 * l))
  return (w - 0.1 * F.logsigmoid(margin)).mean()


def _smpo(error, ref, batch):
  """Lu et al.: train.py of the authors, by scores that are 1 apart."""
  w, l = map(np.array, (batch.comparisons.better, batch.comparisons.worse))
  model_diff, ref_diff = error[w] - error[l], ref[w] - ref[l]
  better = torch.sigmoid(torch.tensor(1.0 / 5.0))
  sure = 10.0 * (2.0 * better - 1.0)
  return -F.logsigmoid(-0.5 * 5000.0 * sure * (model_diff - ref_diff)).mean()


def _move(x, noise, here, there):
  """To another power of the signal."""
  clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
  return np.float32(there**0.5 * clean + (1 - there) ** 0.5 * noise)


@torch.no_grad()
def _renoised(model, batch, asked):
  """Lu et al.: what the model itself makes of the latents, in five steps."""
  alpha_bar = SCHEDULER.alpha_bar()
  until = np.array(asked.timestep).astype(int)
  wide = lambda x: np.asarray(x, np.float32)[:, None, None, None]
  alpha, sigma = (
    wide(alpha_bar[until] ** 0.5),
    wide((1 - alpha_bar[until]) ** 0.5),
  )
  latent = (np.array(asked.noisy) - sigma * np.array(asked.target)) / alpha

  def predict(x, t):
    told = np.full(len(x), t, np.float32)
    return _torch_predict(model, batch, x, told).permute(0, 2, 3, 1).numpy()

  x = latent
  for t in (-199, 1, 201, 401, 601):
    here, there = alpha_bar[max(t, 0)], alpha_bar[t + 200]
    first = predict(x, t)
    second = predict(_move(x, first, here, there), t)
    moved = _move(x, (first + second) / 2, here, there)
    x = np.where(wide(t < until), moved, x)
  noise = (x - alpha * latent) / sigma
  return Noising(jnp.asarray(x), asked.timestep, jnp.asarray(noise))


@pytest.mark.parametrize(
  ("name", "formula", "rate", "diffusion"),
  [
    ("dpo", _diffusion_dpo, 1e-6, {}),
    ("mapo", _mapo, 3e-5, {}),
    ("smpo", _smpo, 1e-6, {"inversion_steps": 5}),
  ],
  ids=["dpo", "mapo", "smpo"],
)
def test_five_steps_are_those_of_torch(unet, name, formula, rate, diffusion):
  definition, params, model = unet
  batch = jax.tree.map(jnp.asarray, _batch())
  settings = _settings(name, **diffusion)
  asked = noise_images(batch, SCHEDULER, settings.diffusion, seed=0)
  objective = image_objective(definition, settings, SCHEDULER)
  tx = optax.adamw(rate, weight_decay=0.01)

  @jax.jit
  def step(trained, state, reference, batch):
    def loss(trained):
      policy, frozen = {"policy": trained}, {"reference": reference}
      key = jax.random.key(1)
      terms, _, _ = objective(policy, frozen, {}, batch, key)
      return terms["loss"].total / terms["loss"].count

    value, grads = jax.value_and_grad(loss)(trained)
    updates, state = tx.update(grads, state, trained)
    return optax.apply_updates(trained, updates), state, value, grads

  policy = copy.deepcopy(model)
  adamw = torch.optim.AdamW(policy.parameters(), rate, weight_decay=0.01)
  trained, state = params, tx.init(params)
  ours, theirs = [], []
  for number in range(5):
    trained, state, value, grads = step(trained, state, params, batch)
    ours.append(float(value))
    adamw.zero_grad()
    now = _renoised(policy, batch, asked) if diffusion else asked
    with torch.no_grad():
      ref = _torch_errors(model, batch, now)
    loss = formula(_torch_errors(policy, batch, now), ref, batch)
    loss.backward()
    if number == 0:
      named = dict(policy.named_parameters())
      for weight in definition.table:
        grad = at(grads, weight.path)
        first = grad[0] if weight.stacked else grad
        their = named[weight.name.format(0)].grad.numpy()
        scale = np.abs(their).max() + 1e-6
        apart = np.abs(weight.theirs(np.array(first)) - their).max() / scale
        assert apart < 1e-3, (weight.name, apart)
    adamw.step()
    theirs.append(float(loss.detach()))
  if name != "mapo":
    assert abs(ours[0] - np.log(2.0)) < 1e-6
  assert ours[4] < 0.9 * ours[0]  # it learns
  np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_what_is_drawn_depends_on_the_example_alone():
  """Not on the slot, the batch or the padding; on the seed and the draw."""
  batch = _batch()
  other = jax.tree.map(lambda x: x, _batch(((0, 1), (2, 3))))
  turned = np.array([2, 3, 0, 1, 4])
  moved = dataclasses.replace(
    other,
    **{
      name: getattr(other, name)[turned]
      for name in ("mean", "std", "prompt", "item", "draw", "sizes")
    },
    slots=jax.tree.map(lambda x: x[turned], other.slots),
  )
  ask = lambda batch, seed=0, **given: noise_images(
    batch, SCHEDULER, config.Diffusion(**given), seed
  )
  here, there = ask(batch), ask(moved)
  for one, two in zip(
    jax.tree.leaves(dataclasses.astuple(here)),
    jax.tree.leaves(dataclasses.astuple(there)),
    strict=True,
  ):
    np.testing.assert_array_equal(np.array(one)[turned], two)
  again = dataclasses.replace(batch, draw=batch.draw + 1)
  for changed in (ask(batch, seed=1), ask(again)):
    assert np.all(np.array(changed.target != here.target).any(axis=(1, 2, 3)))


def test_what_the_images_of_a_prompt_share():
  def drawn(**given):
    settings = config.Diffusion(**given)
    asked = noise_images(_batch(padding=0), SCHEDULER, settings, seed=0)
    # epsilon: the target is the noise
    return np.array(asked.timestep), np.array(asked.target)

  time, noise = drawn()
  assert time[0] == time[1] != time[2] == time[3]
  np.testing.assert_array_equal(noise[0], noise[1])
  assert (noise[0] != noise[2]).any()
  time, noise = drawn(share_timestep=False, share_noise=False)
  assert len(set(time.tolist())) == 4
  assert (noise[0] != noise[1]).any()
  time, _ = drawn(timesteps=(249, 499), share_timestep=False)
  assert set(time.tolist()) <= {249.0, 499.0}


def test_values_are_those_of_the_losses(unet):
  """Lists of three and of two images in one batch, one slot of padding."""
  definition, params, _ = unet
  batch = jax.tree.map(jnp.asarray, _batch(((0, 1, 2), (3, 4))))
  trained = jax.tree.map(lambda x: 1.01 * x, params)
  settings = _settings("rank_dpo")
  objective = image_objective(definition, settings, SCHEDULER)
  roles = {"policy": trained}, {"reference": params}
  key = jax.random.key(0)
  error, gain, time = objective.forward(*roles, batch, key)
  terms, _, metrics = objective.terms({}, batch, (error, gain, time))
  expected = losses.rank_dpo(
    gain[batch.lists.slot],
    batch.slots.score[batch.lists.slot],
    jnp.asarray(batch.lists.valid),
    beta=100.0,
  )
  assert terms["loss"].count == 2
  np.testing.assert_allclose(terms["loss"].total, expected.sum(), rtol=1e-6)
  ref, *_ = objective.forward({"policy": params}, roles[1], batch, key)
  np.testing.assert_allclose(gain, 0.5 * (ref - error), atol=2e-7)
  asked = noise_images(batch, SCHEDULER, settings.diffusion, seed=0)
  np.testing.assert_allclose(time, asked.timestep / 1000.0, rtol=1e-6)
  margins = [metrics[f"rewards/margins/noise_{n}"] for n in (1, 2, 3, 4)]
  quarters = [np.array(time)[i] // 0.25 for i in (0, 3)]
  assert [each.count for each in margins] == [
    quarters.count(n) for n in range(4)
  ]
  whole = sum(each.total for each in margins)
  np.testing.assert_allclose(whole, metrics["rewards/margins"].total, rtol=1e-5)
  told = metrics["error/chosen"]
  np.testing.assert_allclose(told.total, error[0] + error[3], rtol=1e-6)
  cached = dataclasses.replace(batch, ref_error=ref)
  _, from_cache, _ = objective.forward(*roles, cached, key)
  np.testing.assert_allclose(from_cache, gain, atol=2e-7)
