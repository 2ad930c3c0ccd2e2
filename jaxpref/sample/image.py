"""Prompts to images, the same whatever the batch and the mesh."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8
import numpy as np

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.models.build import bind
from jaxpref.models.sdxl.image_model import ImageModel, tokenize
from jaxpref.models.sdxl.pipeline import encode_text
from jaxpref.models.sdxl.vae import Vae
from jaxpref.ops.noise import Latents, add_noise
from jaxpref.sample.denoise import Draw, Predict, denoise, draws, image_keys
from jaxpref.sample.guidance import guided, unguided
from jaxpref.sample.samplers import Sampler, make_sampler, started_at
from jaxpref.types import Params

Ids = Mapping[str, Int32[Array, "_ tokens"]]
"""Of the prompts, for each text encoder."""


Start = Callable[[int], UInt8[np.ndarray, "y x 3"]]
"""From an image's number, the one that it starts from."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How images are made; checked."""

  sampler: Sampler
  height: int  # pixels
  width: int
  guidance: float
  rescaled: float
  negative_prompt: str
  seed: int
  scores: tuple[float, float]  # of beauty: what to come to, and to keep from
  image: Start | None


def make_recipe(
  model: ImageModel, settings: config.Sample, image: Start | None = None
) -> Recipe:
  """Raises UserError for a size, sampler or number of steps that cannot be."""
  factor, unet = model.factor, model.definitions["unet"]
  own = factor * (unet.config.sample_size or 64)
  height, width = settings.height or own, settings.width or own
  for name, size in (("height", height), ("width", width)):
    if size % factor:
      below = size // factor * factor
      raise UserError(
        f"config.sample.{name} is {size}; it must be a multiple of {factor}, "
        f"such as {below or factor} or {below + factor}."
      )
  sampler = make_sampler(settings.sampler, model.scheduler, settings.steps)
  if image is not None:
    has = image(0).shape
    if has[:2] != (height, width):
      raise UserError(
        f"config.sample.image is {has[1]} wide and {has[0]} "
        f"high, and the images are to be {width} by {height}. Scale it, or set "
        "config.sample.width and height."
      )
    sampler = started_at(sampler, settings.strength)
  return Recipe(
    sampler,
    height,
    width,
    settings.guidance,
    settings.guidance_rescale,
    settings.negative_prompt,
    settings.seed,
    (settings.aesthetic_score, settings.negative_aesthetic_score),
    image,
  )


def make_images(
  model: ImageModel, recipe: Recipe
) -> Callable[[Params, Sequence[str], Sequence[int]], np.ndarray]:
  """make_images(...)(params, prompts, numbers) -> images [prompts, Y, X, 3].

  Each device makes one image at a time, by a program of its own over all of the
  weights, whatever the number of prompts and of devices. Larger batches would
  round differently (four at a time: one value of 49,152 by one level), and so
  would a program that is cut up for a mesh (two values). One image of SDXL's
  size, with its guidance, fills a device.

  Args:
    model: the folder's.
    recipe: of `make_recipe`.

  Returns: a function of the weights by part, of prompts, and of the images'
  numbers, which with the seed decide all their noise.
  """
  program = jax.jit(_spread(_program(model, recipe)))
  empty, _ = tokenize(model, [recipe.negative_prompt])

  def make(
    params: Params, prompts: Sequence[str], numbers: Sequence[int]
  ) -> np.ndarray:
    rows, made = sharding.shards("batch"), []
    for start in range(0, len(prompts), rows):
      # The last ones are filled up by the first again.
      places = [i % len(prompts) for i in range(start, start + rows)]
      ids, _ = tokenize(model, [prompts[i] for i in places])
      numbered = np.asarray([numbers[i] for i in places], np.int32)
      starts = recipe.image and np.stack([recipe.image(i) for i in numbered])
      made.append(program(params, ids, empty, numbered, starts))
    return np.concatenate(made)[: len(prompts)]

  return make


def _spread(program: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The program on each device, for its own prompts and numbers."""

  def spread(*args: Any) -> jax.Array:
    own = ((), ("batch",), (), ("batch",), ("batch",))
    made = sharding.per_device(program, own, ("batch",))(*args)
    # On every device, so that each process can read all of it.
    return sharding.constrain(made, (None,) * 4)

  return spread


def _program(model: ImageModel, recipe: Recipe) -> Callable[..., jax.Array]:
  unet, vae = (model.definitions[name] for name in ("unet", "vae"))
  steps, start = recipe.sampler

  def beginning(
    params: Params, numbers: jax.Array, image: jax.Array | None
  ) -> tuple[jax.Array, Draw]:
    size = recipe.height // model.factor, recipe.width // model.factor
    keys = image_keys(recipe.seed, numbers)
    noise, draw = draws(keys, (*size, vae.config.latent_channels))
    if image is None:
      return start * noise, draw
    autoencoder = bind(vae, params["vae"])
    moments = autoencoder.encode(image.astype(jnp.float32) / 127.5 - 1.0)
    level = jnp.asarray(steps.alpha[0]), jnp.asarray(steps.sigma[0])
    return add_noise(autoencoder.scale(moments.mean), noise, *level), draw

  def ask(params: Params, latents: Any, timesteps: Any, text: Any) -> jax.Array:
    context, pooled, sizes = text
    added = {"text_embeds": pooled, "time_ids": sizes}
    return bind(unet, params["unet"])(
      latents, timesteps, context, added if model.takes_sizes else None
    )

  def predictor(params: Params, ids: Ids, empty: Ids) -> Predict:
    score, negative_score = recipe.scores
    encoded = encode_text(model.definitions, params, ids)
    count = len(encoded[0])
    text = *encoded, _sizes(model, recipe, score, count)
    asked = functools.partial(ask, params)
    if recipe.guidance <= 1.0:
      return unguided(asked, text)
    none = encode_text(model.definitions, params, empty)
    if model.zero_empty and not recipe.negative_prompt:
      none = jax.tree.map(jnp.zeros_like, none)
    none = jax.tree.map(
      lambda one, all_: jnp.broadcast_to(one, all_.shape), none, encoded
    )
    without = *none, _sizes(model, recipe, negative_score, count)
    scales = {"scale": recipe.guidance, "rescaled": recipe.rescaled}
    return guided(asked, text, without, **scales)

  def program(
    params: Params,
    ids: Ids,
    empty: Ids,
    numbers: Int32[Array, " images"],
    image: UInt8[Array, "images y x 3"] | None,
  ) -> UInt8[Array, "images y x 3"]:
    noise, draw = beginning(params, numbers, image)
    latents = denoise(
      predictor(params, ids, empty),
      steps,
      noise,
      prediction=model.scheduler.prediction_type,
      draw=draw if np.any(steps.std) else None,
    )
    return decode_pixels(bind(vae, params["vae"]), latents)

  return program


def decode_pixels(
  autoencoder: Vae, latents: Latents
) -> UInt8[Array, "images Y X 3"]:
  """What an image file holds of latents as a UNet has them."""
  pixels = autoencoder.decode(autoencoder.unscale(latents))
  whole = jnp.round(127.5 * (jnp.clip(pixels, -1.0, 1.0) + 1.0))
  return whole.astype(jnp.uint8)


def _sizes(
  model: ImageModel, recipe: Recipe, score: float, rows: int
) -> jax.Array:
  """SDXL's conditions: the original size, the crop's corner, the target size.

  The refiner has `score` in place of the last. In float32, whatever the model
  computes in: 16 bits round above 256.
  """
  size = (recipe.height, recipe.width)
  last = (score,) if model.takes_rating else size
  ids = jnp.asarray([*size, 0, 0, *last], jnp.float32)
  return jnp.broadcast_to(ids, (rows, len(ids)))
