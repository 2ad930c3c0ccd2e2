"""The small Stable Diffusion, as diffusers and transformers load it."""

import jax
import numpy as np
import pytest

from jaxpref import config
from jaxpref.data.shapes import CAPTIONS, SIDE, WORDS, draw_shapes
from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.image_model import open_image_model, tokenize
from jaxpref.models.sdxl.pipeline import StoredParts
from jaxpref.models.sdxl.small import (
  PLACES,
  init_small,
  small_vae,
  write_small,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("small") / "model"
  vae = define(small_vae(SIDE), dtype="float32", remat="")
  write_small(folder, vae, init_small(vae, 0), WORDS)
  return folder


@pytest.fixture(scope="module")
def pipeline(folder):
  import diffusers

  return diffusers.StableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
  settings = {"family": "sdxl", "path": str(folder), "dtype": "float32"}
  return open_image_model(config.build({"model": settings}).model)


def test_a_word_is_a_token(model, pipeline):
  tokenizer = model.tokenizers["text_encoder"]
  for word in WORDS:
    assert len(tokenizer(word).input_ids) == 3, word
  ids, cut = tokenize(model, [*CAPTIONS, "", "Any (té)xt at all!"])
  assert cut == 1
  theirs = pipeline.tokenizer(
    [*CAPTIONS, "", "Any (té)xt at all!"],
    padding="max_length",
    truncation=True,
  )
  np.testing.assert_array_equal(ids["text_encoder"], theirs.input_ids)
  assert ids["text_encoder"].shape == (len(CAPTIONS) + 2, PLACES)
  assert len({tuple(row) for row in ids["text_encoder"]}) == len(CAPTIONS) + 2


def test_parts_do_as_theirs(model, pipeline):
  """Pixels to moments, latents to pixels, texts to states, latents to noise."""
  import torch

  params = dict(StoredParts(model.pipeline))
  bound = {
    name: bind(each, params[name]) for name, each in model.definitions.items()
  }
  pixels = np.stack([each.pixels for each in draw_shapes(2, 0)])
  pixels = pixels.astype(np.float32) / 127.5 - 1.0
  latents = np.random.default_rng(0).normal(size=(2, 8, 8, 4))
  latents = latents.astype(np.float32)
  ids, _ = tokenize(model, CAPTIONS[:2])
  ids = ids["text_encoder"]
  first = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
  last = lambda x: x.permute(0, 2, 3, 1).numpy()
  with torch.no_grad():
    context = pipeline.text_encoder(torch.from_numpy(ids).long())[0]
    wanted = {
      "text": context.numpy(),
      "mean": last(pipeline.vae.encode(first(pixels)).latent_dist.mean),
      "pixels": last(pipeline.vae.decode(first(latents)).sample),
      "noise": last(pipeline.unet(first(latents), 7, context).sample),
    }
  found = {
    "text": jax.jit(bound["text_encoder"])(ids).last,
    "mean": jax.jit(lambda x: bound["vae"].encode(x).mean)(pixels),
    "pixels": jax.jit(bound["vae"].decode)(latents),
    "noise": jax.jit(bound["unet"])(
      latents, np.full(2, 7.0, np.float32), context.numpy(), None
    ),
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
