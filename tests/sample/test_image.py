"""Images of a tiny SDXL: diffusers' pixels, and the same on any mesh."""

import dataclasses
import functools
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import torch

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.models.sdxl.image_model import open_image_model, tokenize
from jaxpref.sample.denoise import draws, image_keys
from jaxpref.sample.image import make_images, make_recipe

# Of diffusers, which makes NumPy arrays of torch's.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

PROMPTS = ["a photo of a cat", "a red house, watercolor " * 20, "☃", "a dog"]
SAMPLE = config.Sample(steps=3, seed=7, guidance=5.0, guidance_rescale=0.3)


@pytest.fixture(scope="module")
def model(sdxl_folder):
  path = str(sdxl_folder)
  return open_image_model(config.Model(path=path, dtype="float32"))


@pytest.fixture(scope="module")
def images(model):
  """images(sample, ...) -> of all four prompts, [4, 64, 64, 3]."""

  def make(sample=SAMPLE, *, image=None, shape=(1, 1, 1), together=4):
    start = None if image is None else lambda number: image
    program = make_images(model, make_recipe(model, sample, start))
    with jax.set_mesh(mesh := sharding.make_mesh(*shape)):
      params = model.load(mesh)
      made = [
        program(params, PROMPTS[i : i + together], range(i, i + together))
        for i in range(0, 4, together)
      ]
    return np.concatenate(made).astype(int)

  return make


@pytest.fixture(scope="module")
def plain(images):
  return images()


@pytest.fixture(scope="module")
def theirs(sdxl_folder):
  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def test_pixels_are_those_of_diffusers(plain, theirs):
  """From the same noise: text, sizes, guidance, sampler, decoder."""
  start, _ = draws(image_keys(7, jnp.arange(4)), (8, 8, 4))
  ask = functools.partial(
    theirs,
    PROMPTS,
    latents=torch.tensor(np.array(start)).permute(0, 3, 1, 2),
    num_inference_steps=3,
    guidance_scale=5.0,
    guidance_rescale=0.3,
    height=64,
    width=64,
    output_type="np",
  )
  pixels = lambda **given: np.round(255 * ask(**given).images).astype(int)
  expected = pixels()
  assert expected.std() > 20
  assert np.abs(plain - expected).max() <= 1  # by rounding
  assert np.abs(plain - pixels(original_size=(128, 64))).max() > 1


@pytest.mark.slow
def test_negative_prompt_is_that_of_diffusers(images, theirs):
  start, _ = draws(image_keys(7, jnp.arange(4)), (8, 8, 4))
  expected = theirs(
    PROMPTS,
    negative_prompt=["blurry"] * 4,
    latents=torch.tensor(np.array(start)).permute(0, 3, 1, 2),
    num_inference_steps=3,
    guidance_scale=5.0,
    guidance_rescale=0.3,
    height=64,
    width=64,
    output_type="np",
  ).images
  made = images(dataclasses.replace(SAMPLE, negative_prompt="blurry"))
  assert np.abs(made - np.round(255 * expected)).max() <= 1


@pytest.mark.parametrize(
  ("together", "shape"), [(1, (1, 1, 1)), (4, (2, 4, 1))]
)
def test_neither_batch_nor_mesh_changes_a_pixel(images, plain, together, shape):
  made = images(shape=shape, together=together)
  np.testing.assert_array_equal(made, plain)


@pytest.mark.slow
def test_pixels_from_an_image_are_those_of_diffusers(
  images, plain, theirs, monkeypatch
):
  start, _ = draws(image_keys(7, jnp.arange(4)), (8, 8, 4))
  start = torch.tensor(np.array(start)).permute(0, 3, 1, 2)
  pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(**theirs.components)
  module = sys.modules[type(pipeline).__module__]
  monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: start)
  posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
  monkeypatch.setattr(posterior, "sample", lambda self, *_: self.mode())
  image = plain[0].astype(np.uint8)
  expected = pipeline(
    PROMPTS,
    image=[Image.fromarray(image)] * 4,
    strength=0.67,
    num_inference_steps=3,
    guidance_scale=5.0,
    guidance_rescale=0.3,
    output_type="np",
  ).images
  made = images(dataclasses.replace(SAMPLE, strength=0.67), image=image)
  assert np.abs(made - np.round(255 * expected)).max() <= 1


@pytest.fixture(scope="module")
def refiner(theirs, tmp_path_factory):
  """A tiny SDXL refiner: one text encoder, and a score in place of a size."""
  torch.manual_seed(1)
  config = dict(theirs.unet.config) | {
    "cross_attention_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 5 * 4,
  }
  pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
    vae=theirs.vae,
    unet=diffusers.UNet2DConditionModel(**config),
    text_encoder=None,
    tokenizer=None,
    text_encoder_2=theirs.text_encoder_2,
    tokenizer_2=theirs.tokenizer_2,
    scheduler=theirs.scheduler,
    requires_aesthetics_score=True,
    force_zeros_for_empty_prompt=False,
  )
  pipeline.save_pretrained(folder := tmp_path_factory.mktemp("refiner") / "x")
  pipeline.set_progress_bar_config(disable=True)
  return pipeline, folder


def test_a_refiner_goes_on_from_images(refiner, plain, monkeypatch):
  """Each image from its own start, told the same scores as by diffusers."""
  pipeline, folder = refiner
  start, _ = draws(image_keys(7, jnp.arange(2)), (8, 8, 4))
  start = torch.tensor(np.array(start)).permute(0, 3, 1, 2)
  module = sys.modules[type(pipeline).__module__]
  monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: start)
  posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
  monkeypatch.setattr(posterior, "sample", lambda self, *_: self.mode())
  pictures = plain[:2].astype(np.uint8)
  ask = functools.partial(
    pipeline,
    PROMPTS[:2],
    image=[Image.fromarray(each) for each in pictures],
    strength=0.67,
    num_inference_steps=3,
    guidance_scale=5.0,
    output_type="np",
  )
  pixels = lambda **given: np.round(255 * ask(**given).images).astype(int)
  model = open_image_model(config.Model(path=str(folder), dtype="float32"))
  sample = dataclasses.replace(SAMPLE, strength=0.67, guidance_rescale=0.0)
  make = make_images(model, make_recipe(model, sample, pictures.__getitem__))
  with jax.set_mesh(mesh := sharding.make_mesh(1, 1, 1)):
    made = make(model.load(mesh), PROMPTS[:2], [0, 1]).astype(int)
  assert np.abs(made - pixels()).max() <= 1
  other = pixels(aesthetic_score=1.0, negative_aesthetic_score=6.0)
  assert np.abs(made - other).max() > 1


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"height": 68}, "multiple of 8, such as 64 or 72"),
    ({"width": 4}, "such as 8"),
    ({"sampler": "dpmpp"}, "Did you mean 'dpmpp_2m'"),
    ({"steps": 0}, "at least 1"),
  ],
)
def test_what_cannot_be_made(model, changed, words):
  with pytest.raises(UserError, match=words):
    make_recipe(model, dataclasses.replace(SAMPLE, **changed))


def test_an_image_of_another_size(model):
  with pytest.raises(UserError, match="32 wide and 64 high"):
    make_recipe(model, SAMPLE, lambda i: np.zeros((64, 32, 3), np.uint8))


def test_tokens_are_those_of_transformers(model):
  prompts = [*PROMPTS, "", "word " * 10_000]
  ids, cut = tokenize(model, prompts)
  assert cut == 2
  for name, tokenizer in model.tokenizers.items():
    theirs = tokenizer(
      prompts, padding="max_length", max_length=77, truncation=True
    )
    np.testing.assert_array_equal(ids[name], theirs.input_ids)
  assert (ids["text_encoder"] != ids["text_encoder_2"]).any()  # the padding
