"""Which images a step holds, and the arrays of it."""

import jax
import numpy as np
import pytest

from jaxpref.data.image_steps import (
  ImageSteps,
  image_batch_shapes,
  pixel_batch_shapes,
)
from jaxpref.data.images import Latent, PreparedImages, Text
from jaxpref.data.order import one_source
from jaxpref.data.pixels import Fitted, Ids, PreparedPixels
from jaxpref.errors import UserError


class _Images(PreparedImages):
  """Prepared images whose latents say which image they are of."""

  def image(self, j, *, mirrored=False):
    number = float(self.response(j)[0])
    number = -number - 1 if mirrored else number
    mean = np.full((2, 2, 4), number, np.float32)
    return Latent(mean, mean / 10.0, np.full(6, number, np.float32))

  def text(self, i):
    number = -1.0 if i == -1 else float(self.prompt(i)[0])
    return Text(np.full((3, 5), number, np.float32), np.full(2, number, "f4"))


class _Shaped(_Images):
  """Of each prompt in turn tall and wide ones."""

  @property
  def bucket(self):
    return np.arange(len(self)) % 2

  def image(self, j, *, mirrored=False):
    found = super().image(j, mirrored=mirrored)
    example = np.searchsorted(self.first_response, j, side="right") - 1
    sides = (3, 2, 4) if example % 2 == 0 else (2, 3, 4)
    mean = np.broadcast_to(found.mean[:1, :1], sides)
    return Latent(mean, mean / 10.0, found.sizes)


class _Pixels(PreparedPixels):
  """The same of pixels and ids."""

  def image(self, j, *, mirrored=False):
    number = self.image_number(j) + 100 * mirrored
    told = np.full(6, number, np.float32)
    return Fitted(np.full((4, 4, 3), number, np.uint8), told)

  def text(self, i):
    number = -1 if i == -1 else self.caption_number(i)
    return Ids({"text_encoder": np.full(7, number, np.int32)})


@pytest.fixture(scope="module")
def folder(make_prepared):
  """Prompts with 2, 3, 2, 4 and 2 images; the first is the best of each."""
  examples, number = [], 0
  for caption, count in enumerate((2, 3, 2, 4, 2)):
    shown = [[number + k] for k in range(count)]
    pairs = [(0, k) for k in range(1, count)]
    examples.append(([caption], shown, pairs))
    number += count
  return make_prepared(examples).folder


@pytest.fixture(scope="module")
def images(folder):
  return _Images(folder)


def _steps(images, **given):
  kept = np.ones(len(images.label), bool)
  options = {"batch_size": 3, "per_device": 3, "devices": 2, "kept": kept}
  return ImageSteps(images, **{**options, **given})


def test_every_image_comes_once_with_its_own_text(images):
  steps = _steps(images, order=one_source(5, seed=3))
  seen = []
  for number in range(len(steps)):
    batch = steps[number]
    assert batch.mean.shape[1:] == (6, 2, 2, 4)
    assert batch.context.shape[1] % 2 == 0  # shared out over the devices
    for m, valid in enumerate(batch.slots.valid):
      for slot in np.flatnonzero(valid):
        image = int(batch.mean[m, slot, 0, 0, 0])
        caption = batch.context[m, batch.prompt[m, slot], 0, 0]
        example = batch.slots.example_id[m, slot]
        first = images.first_response[example]
        assert caption == example
        assert image == first + batch.item[m, slot]
        assert batch.sizes[m, slot, 0] == image
        seen.append(image)
      pairs = batch.comparisons
      for c in np.flatnonzero(pairs.valid[m]):
        sides = pairs.better[m, c], pairs.worse[m, c]
        better, worse = (batch.slots.example_id[m, side] for side in sides)
        assert better == worse
        assert batch.item[m, sides[0]] == 0
  assert sorted(seen) == list(range(13))
  assert sum(steps.amounts(steps[n])["images"] for n in range(2)) == 13
  assert sum(steps.amounts(steps[n])["pairs"] for n in range(2)) == 8


def test_shapes_of_a_batch(images):
  steps = _steps(images)
  told = {"latent": (2, 2, 4), "context": (3, 5), "pooled": 2}
  for cached in (False, True):
    if cached:
      steps.ref_error = np.ones((1, len(images.response_lengths)), np.float32)
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), steps[0]
    )
    assert image_batch_shapes(steps.shape, cached=cached, **told) == shapes


def test_pixels_stand_where_latents_do(folder, images):
  given = {"order": one_source(5, seed=3), "drop_caption": 0.4, "flip": 0.4}
  latents, pixels = (_steps(x, **given) for x in (images, _Pixels(folder)))
  for number in range(len(latents)):
    one, other = latents[number], pixels[number]
    told = one.mean[..., 0, 0, 0]
    image = np.where(told < 0, 100 - told - 1, told)
    np.testing.assert_array_equal(other.pixels[..., 0, 0, 0], image)
    told = other.ids["text_encoder"][..., 0]
    np.testing.assert_array_equal(told, one.context[..., 0, 0])
    for name in ("prompt", "item", "draw", "slots", "comparisons", "lists"):
      both = (getattr(each, name) for each in (one, other))
      assert jax.tree.all(jax.tree.map(np.array_equal, *both))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pixels[0]
  )
  tokens = {"text_encoder": 7}
  assert shapes == pixel_batch_shapes(
    pixels.shape, size=(4, 4), tokens=tokens, cached=False
  )


def test_a_step_holds_one_shape(folder):
  """Every image once an epoch; what a shape lacks to a batch is left empty."""
  shaped = _Shaped(folder, shapes=((30, 20), (20, 30)))
  for order in (None, one_source(5, seed=3, bucket=shaped.bucket)):
    steps = _steps(shaped, order=order, batch_size=2, num_steps=6)
    assert steps.steps_per_epoch == 3  # two and one of the one, two
    micros = set()
    for epoch in range(2):
      seen = []
      for number in range(3 * epoch, 3 * epoch + 3):
        batch = steps[number]
        rows, columns = steps.image_shape(number)
        micros.add(batch.mean.shape[:2])
        assert batch.mean.shape[2:] == (rows // 10, columns // 10, 4)
        assert np.isfinite(batch.mean).all()
        weights = batch.slots.valid
        seen += batch.mean[..., 0, 0, 0][weights].astype(int).tolist()
        assert steps.amounts(batch)["images"] == steps.images(number)
        assert weights.sum() == steps.images(number)
      assert sorted(seen) == list(range(13))
    assert len(micros) == 1  # so each shape is one program


def test_padding_is_a_copy_of_a_real_image(images):
  batch = _steps(images, batch_size=1, order=one_source(5, seed=None))[0]
  assert batch.slots.valid.tolist() == [[True, True] + [False] * 4]
  np.testing.assert_array_equal(batch.mean[0, 2:], batch.mean[0, [0] * 4])
  assert np.isfinite(batch.context).all()


def test_a_prompt_is_left_out_as_often_as_asked(images):
  steps = _steps(images, drop_caption=0.4, num_steps=400, batch_size=5)
  dropped = total = 0
  for number in range(0, 400, 4):
    batch = steps[number]
    texts = batch.context[
      np.arange(len(batch.prompt))[:, None], batch.prompt, 0, 0
    ][batch.slots.valid]
    owner = batch.slots.example_id[batch.slots.valid]
    for example in range(5):
      told = set(texts[owner == example].tolist())
      assert len(told) == 1  # of all images of the prompt, or of none
      dropped += told == {-1.0}
      total += 1
  assert 0.3 < dropped / total < 0.5
  again = _steps(images, drop_caption=0.4, num_steps=400, batch_size=5)
  np.testing.assert_array_equal(again[7].context, steps[7].context)


def test_a_prompt_s_images_are_mirrored_together(images):
  """As often as asked, by seed, prompt and draw; not by batch or order."""
  found = {}
  for seed, batch_size in ((0, 5), (0, 2), (1, 5)):
    steps = _steps(
      images,
      flip=0.3,
      batch_size=batch_size,
      num_steps=80 * -(-5 // batch_size),
      order=one_source(5, seed=seed + batch_size),
      seed=seed,
    )
    told = found[seed, batch_size] = {}
    for number in range(len(steps)):
      batch = steps[number]
      mirrored = batch.mean[..., 0, 0, 0] < 0
      for m, slot in np.argwhere(batch.slots.valid):
        example = int(batch.slots.example_id[m, slot])
        key = example, int(batch.draw[m, slot])
        assert told.setdefault(key, mirrored[m, slot]) == mirrored[m, slot]
    assert len(told) == 5 * 80
    assert 0.2 < np.mean([*told.values()]) < 0.4
  assert found[0, 5] == found[0, 2]
  assert found[0, 5] != found[1, 5]


def test_a_bank_of_noise_holds_mirrored_images_too(images):
  order = one_source(5, seed=None)
  steps = _steps(
    images, flip=0.5, batch_size=5, noise_bank=2, num_steps=6, order=order
  )
  found = [steps[number].mean for number in range(6)]
  np.testing.assert_array_equal(found[0], found[2])
  np.testing.assert_array_equal(found[1], found[5])
  assert (found[0] != found[1]).any()


def test_draws_count_the_epochs(images):
  steps = _steps(images, num_steps=5)
  assert [int(steps[n].draw.max()) for n in range(5)] == [0, 0, 1, 1, 2]


def test_too_many_images_for_a_step(images):
  with pytest.raises(UserError, match="A prompt has 4 images"):
    _steps(images, devices=1)
