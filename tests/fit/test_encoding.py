"""Autoencoder and text encoders in front of an objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.fit.encoding import encoded_first, make_encode, score_encoded
from jaxpref.fit.objectives import Objective
from jaxpref.models.sdxl.image_model import open_image_model, tokenize
from jaxpref.models.sdxl.pipeline import (
  StoredParts,
  encode_images,
  encode_text,
  encoders,
  without_decoder,
)
from jaxpref.types import Comparisons, Lists, PixelBatch, Slots, Term


@pytest.fixture(scope="module")
def model(sdxl_folder):
  settings = config.Model(path=str(sdxl_folder), dtype="float32")
  return open_image_model(settings)


@pytest.fixture(scope="module")
def frozen(model):
  stored = StoredParts(model.pipeline)
  parts = {name: stored[name] for name in encoders(model.definitions)}
  return {**parts, "vae": without_decoder(parts["vae"])}


@pytest.fixture(scope="module")
def batch(model):
  """Sixteen images of eight prompts."""
  rng = np.random.default_rng(0)
  i32 = lambda *x: np.arange(*x, dtype=np.int32)
  ids, _ = tokenize(model, [f"number {i}" for i in range(7)] + [""])
  count, pairs = 16, 8
  ones = np.ones(pairs, np.float32)
  return PixelBatch(
    prompt=i32(count) // 2,
    item=i32(count) % 2,
    draw=np.zeros(count, np.int32),
    sizes=np.zeros((count, 6), np.float32),
    ref_error=None,
    slots=Slots(
      example_id=i32(count) // 2,
      valid=np.ones(count, bool),
      label=np.full(count, -1, np.int32),
      mismatched=np.zeros(count, bool),
      score=np.zeros(count, np.float32),
    ),
    comparisons=Comparisons(
      better=i32(0, count, 2),
      worse=i32(1, count, 2),
      valid=np.ones(pairs, bool),
      weight=ones,
      preference=ones,
    ),
    lists=Lists(i32(count).reshape(pairs, 2), np.ones((pairs, 2), bool)),
    pixels=rng.integers(0, 256, (count, 16, 16, 3), np.uint8),
    ids=ids,
  )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 1)])
def test_it_is_what_the_models_make_of_them(model, frozen, batch, shape):
  mesh = sharding.make_mesh(*shape)
  places = {
    name: sharding.param_shardings(mesh, each.shapes, each.axes)
    for name, each in encoders(model.definitions).items()
  }
  places["vae"] = without_decoder(places["vae"])
  params = jax.device_put(frozen, places)
  spread = jax.device_put(batch, sharding.batch_sharding(mesh, axis=0))
  with jax.set_mesh(mesh):
    found = jax.jit(make_encode(model.definitions))(params, spread)
  rows = sharding.batch_sharding(mesh, axis=0)
  assert found.mean.sharding.is_equivalent_to(rows, 4)
  whole = jax.jit(lambda p, x: encode_images(model.definitions, p, x))
  mean, std = whole(frozen, batch.pixels)
  text = jax.jit(lambda p, x: encode_text(model.definitions, p, x))
  context, pooled = text(frozen, batch.ids)
  # Of these batches of all at once 3e-6 is the most that was seen.
  close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)
  close(found.mean, mean)
  close(found.std, std)
  close(found.context, context)
  close(found.pooled, pooled)
  assert np.ptp(np.asarray(mean), axis=0).max() > 1e-2
  for name in ("prompt", "item", "draw", "sizes", "slots", "comparisons"):
    both = (getattr(each, name) for each in (found, batch))
    assert jax.tree.all(jax.tree.map(np.array_equal, *both))


def test_an_objective_on_pixels_has_the_gradient_of_one_on_latents(
  model, frozen, batch
):
  def forward(trainable, frozen, batch, key):
    told = batch.context[batch.prompt].mean((1, 2))
    scale = trainable["policy"]["scale"]
    return scale * (jnp.square(batch.mean).sum((1, 2, 3)) + told)

  def terms(state, batch, values):
    chosen = values[batch.comparisons.better].sum()
    return {"loss": Term(chosen, jnp.ones(()))}, state, {}

  latents, encode = Objective(forward, terms), make_encode(model.definitions)

  def gradient(objective, batch):
    def loss(scale):
      roles = {"policy": {"scale": scale}}
      key = jax.random.key(0)
      return objective(roles, frozen, {}, batch, key)[0]["loss"].total

    return jax.grad(loss)(jnp.ones(()))

  found = jax.jit(lambda x: gradient(encoded_first(latents, encode), x))(batch)
  stored = gradient(latents, jax.jit(encode)(frozen, batch))
  assert abs(stored) > 1e-2
  np.testing.assert_allclose(found, stored, rtol=1e-5)


def test_scores_of_micro_batches_on_pixels(model, frozen, batch):
  encode = make_encode(model.definitions)
  stack = lambda *x: np.stack(x)
  other = dataclasses.replace(batch, pixels=batch.pixels[::-1])
  both = jax.tree.map(stack, batch, other)
  score = lambda frozen, batch: batch.mean.mean((-1, -2, -3))
  found = score_encoded(score, encode)(frozen, both)
  assert found.shape == (2, 16)
  np.testing.assert_allclose(found[0], found[1, ::-1], atol=1e-6)
  assert np.ptp(found[0]) > 1e-3
