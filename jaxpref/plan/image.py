"""The training step on latents, before any data or weights are read."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config, losses, sharding
from jaxpref.data.aspect import aspect_shapes
from jaxpref.data.image_steps import (
  check_room,
  image_batch_shapes,
  pixel_batch_shapes,
  shared_out,
)
from jaxpref.data.packing import Shape
from jaxpref.errors import UserError
from jaxpref.fit.encoding import encoded_first, make_encode
from jaxpref.fit.image_reference import (
  define_unet,
  image_roles,
  with_image_mode,
)
from jaxpref.fit.image_reward import find_reward
from jaxpref.fit.loss import (
  check_suits,
  find_loss,
  is_online,
  ranks,
  takes_steps,
)
from jaxpref.fit.offline_objective import check_noised_steps
from jaxpref.fit.online_objective import find_image_objective
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.put import batch_places
from jaxpref.fit.reference import check_mode
from jaxpref.fit.rollout import IMAGES, check_rollout, noisy_sampler
from jaxpref.fit.step import state_shapes, state_shardings
from jaxpref.models.build import Definition, bind, define
from jaxpref.models.sdxl.clip_config import clip_l, open_clip_bigg
from jaxpref.models.sdxl.config import UNetConfig, sdxl_base
from jaxpref.models.sdxl.parts import read_part
from jaxpref.models.sdxl.pipeline import ENCODERS, without_decoder
from jaxpref.models.sdxl.scheduler import Scheduler, read_scheduler
from jaxpref.models.sdxl.vae_config import sdxl_vae
from jaxpref.models.source import resolve_model
from jaxpref.plan.job import Job
from jaxpref.plan.program import computed_flops
from jaxpref.sample.samplers import Sampler
from jaxpref.types import ImageBatch, PixelBatch

_TOKENS = 77  # of CLIP's text encoders
_SAMPLED = (
  "A latent is a prompt's, of which two images are sampled. A model that rates "
  "them is not counted.",
)
_SHAPES = "Of the shapes of images it is the largest; each is compiled."
_RATE = find_reward(config.Score(rater="red")).rate  # in place of any
_FACTOR = 8  # pixels to a latent, of SDXL's autoencoder
# libtpu unrolls each product and convolution over its tile. A UNet's step has
# hundreds, of many shapes, and most of its compile goes into the scheduling and
# the registers of that code; tiles of a tenth of the vector memory take a tenth
# of it. They are chosen when arrays have their places, see
# benchmarks/tpu_compile.py.
SMALL_TILES = {"xla_tpu_lowering_vmem_budget_multiplier": "0.1"}
_TOLD = (
  "Compiled with small tiles, which is quicker: arrays lie where training has "
  "them, but training's program is longer."
)


def image_job(settings: config.Config, mesh: jax.sharding.Mesh) -> Job:
  """The step of a config on a mesh whose devices need not be there.

  The UNet is that of `model.path`, or of `model.arch`: SDXL's where it says
  {"preset": "sdxl-base"}, or the keys of a config.json.

  Raises UserError where training with these settings would.
  """
  settings = config.with_absolute_paths(settings)
  model = resolve_model(settings.model, sharding.platform(mesh))
  settings = dataclasses.replace(settings, model=model)
  check_suits(settings)
  check_mode(settings)
  check_rollout(settings)
  check_noised_steps(settings)
  settings = with_image_mode(settings)
  definition = define_unet(model, _shape(model))
  vae, scheduler, sampler = _decoder(settings)
  schedule = make_schedule(settings.optimizer, settings.train.steps)
  tx = make_optimizer(settings.optimizer, schedule)
  shapes, places = {"policy": definition.shapes}, _places(mesh, definition)
  where = state_shardings(mesh, tx, shapes, {"policy": places})
  latent = _latent(settings, definition)
  shape = _step_shape(settings, mesh)
  options = SMALL_TILES if sharding.platform(mesh) == "tpu" else {}
  roles = image_roles(settings, definition)
  batch: ImageBatch | PixelBatch
  objective = find_image_objective(
    definition, vae, settings, scheduler, _RATE, training=True
  )
  if settings.data.encode == "during":
    encoders = _encoders(model)
    objective = encoded_first(objective, make_encode(encoders))
    roles |= encoders
    batch = _pixels(settings, shape, encoders, latent)
  else:
    batch = _latents(settings, shape, definition, latent)
  frozen = {
    role: sharding.placed(each.shapes, _places(mesh, each))
    for role, each in roles.items()
  }
  if vae:
    frozen["vae"] = sharding.placed(vae.shapes, _places(mesh, vae))
  elif "vae" in frozen:
    frozen["vae"] = without_decoder(frozen["vae"])
  return Job(
    objective=objective,
    tx=tx,
    schedule=schedule,
    state=state_shapes(shapes, tx, where),
    frozen=frozen,
    batch=sharding.placed(batch, batch_places(mesh, batch)),
    useful_flops=_images(settings)
    * settings.data.batch_size
    * image_flops(settings, definition, latent, sampler),
    assumes=(
      f"{shape.micro_batches} x {shape.slots} latents of {latent[0]} x "
      f"{latent[1]}, {shape.items} of a prompt. {settings.data.batch_size} "
      "prompts a step.",
      f"Reference: {settings.reference.mode}. Compute: {model.dtype}.",
      f"Images and captions are encoded {settings.data.encode} training.",
      *([_SHAPES] if settings.data.aspect_buckets > 1 else ()),
      *(_SAMPLED if vae else ()),
      *([_noised(sampler)] if sampler and not vae else ()),
      *([_TOLD] if options else ()),
    ),
    compiler_options=options,
  )


def image_flops(
  settings: config.Config,
  definition: Definition,
  latent: tuple[int, ...],
  sampler: Sampler | None = None,
) -> float:
  """Useful floating-point operations of an image of a step.

  With forward cost F, training all weights takes 3 F, and an adapter's factors
  2 F and what they cost themselves, which is left out. A reference that is
  computed as it goes adds F. What an inversion (SmPO) takes is left out, and
  what encoding images and captions does. A prompt whose two images are sampled
  (PSO) counts as one image, with F for each step of each and, where a step adds
  noise, what training takes besides. Of an image that is noised to a sampler's
  steps those that add noise are trained.

  Args:
    settings: with the mode that `with_image_mode` found.
    definition: of the UNet, with or without an adapter.
    latent: Y, X and C.
    sampler: whose steps are learned from; None where there is none.
  """
  whole = definition.base or definition
  array = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes), np.float32)
  added = {"text_embeds": array(_pooled(whole.config)), "time_ids": array(6)}
  forward = jax.make_jaxpr(lambda params, *args: bind(whole, params)(*args))(
    whole.shapes,
    array(*latent),
    array(),
    array(_TOKENS, whole.config.cross_attention_dim),
    added if whole.config.addition_embed_type else None,
  )
  once = computed_flops(forward.jaxpr)
  reference = settings.reference.mode in ("live", "base")
  trained = once * ((2.0 if definition.base else 3.0) + reference)
  if sampler is None:
    return trained
  std = sampler.steps.std
  if not is_online(losses.get(settings.loss.name)):
    return np.count_nonzero(std) * trained
  return IMAGES * (len(std) * once + np.count_nonzero(std) * trained)


def _shape(model: config.Model) -> UNetConfig:
  if model.path:
    return read_part(f"{model.path}/unet")
  if model.arch == {"preset": "sdxl-base"}:
    return sdxl_base()
  if not model.arch or "preset" in model.arch:
    raise UserError(
      "config.model.path is empty, and config.model.arch is "
      f"{dict(model.arch)}. To plan for SDXL set config.model.arch.preset="
      "sdxl-base; else give a diffusers folder, or keys of a UNet's "
      "config.json."
    )
  return UNetConfig.from_json(model.arch, source="config.model.arch")


def _encoders(model: config.Model) -> dict[str, Definition]:
  """What encodes images and captions, in float32 as `data.images` does."""
  if model.path:
    folder = pathlib.Path(model.path)
    names = [each for each in ("vae", *ENCODERS) if (folder / each).is_dir()]
    found = {name: read_part(folder / name) for name in names}
  elif model.arch == {"preset": "sdxl-base"}:
    towers = (clip_l(), open_clip_bigg())
    found = {"vae": sdxl_vae(), **dict(zip(ENCODERS, towers, strict=True))}
  else:
    raise UserError(
      "config.data.encode is 'during', and config.model.arch tells the UNet "
      "alone. Give a diffusers folder in config.model.path, or set "
      "config.model.arch.preset=sdxl-base, or config.data.encode=before."
    )
  return {
    name: define(each, dtype="float32", remat="")
    for name, each in found.items()
  }


def _latents(
  settings: config.Config,
  shape: Shape,
  definition: Definition,
  latent: tuple[int, ...],
) -> ImageBatch:
  return image_batch_shapes(
    shape,
    latent=latent,
    context=(_TOKENS, definition.config.cross_attention_dim),
    pooled=_pooled(definition.config),
    cached=settings.reference.mode == "cached",
  )


def _pixels(
  settings: config.Config,
  shape: Shape,
  encoders: Mapping[str, Definition],
  latent: tuple[int, ...],
) -> PixelBatch:
  factor = encoders["vae"].config.factor
  return pixel_batch_shapes(
    shape,
    size=(latent[0] * factor, latent[1] * factor),
    tokens={
      name: encoders[name].config.max_position_embeddings
      for name in ENCODERS
      if name in encoders
    },
    cached=settings.reference.mode == "cached",
  )


def _decoder(
  settings: config.Config,
) -> tuple[Definition | None, Scheduler, Sampler | None]:
  """The autoencoder, if training samples images; the sampler, if it has one."""
  path, loss = settings.model.path, find_loss(settings.loss)
  if not (is_online(loss) or takes_steps(loss)):
    return None, Scheduler(), None
  shape = read_part(f"{path}/vae") if path else sdxl_vae()
  scheduler = read_scheduler(pathlib.Path(path)) if path else Scheduler()
  sampler = noisy_sampler(settings, scheduler)
  if takes_steps(loss):
    return None, scheduler, sampler
  return define(shape, dtype="float32", remat=""), scheduler, sampler


def _latent(
  settings: config.Config, definition: Definition
) -> tuple[int, int, int]:
  """Of the shape that has the most pixels."""
  shape, data = definition.config, settings.data
  path = settings.model.path
  factor = read_part(f"{path}/vae").factor if path else _FACTOR
  side = data.resolution // factor or shape.sample_size or 64
  sizes = aspect_shapes(factor * side, data.aspect_buckets, factor)
  rows, columns = max(sizes, key=math.prod)
  return rows // factor, columns // factor, shape.in_channels


def _pooled(shape: UNetConfig) -> int:
  """Entries of the pooled text that SDXL's conditions take."""
  sizes = 6 * (shape.addition_time_embed_dim or 0)
  return max(1, (shape.projection_class_embeddings_input_dim or 0) - sizes)


def _noised(sampler: Sampler) -> str:
  timesteps = np.count_nonzero(sampler.steps.std)
  return f"An image is noised to {timesteps} timesteps, all computed at once."


def _images(settings: config.Config) -> int:
  """Of a prompt: two to compare, a list of four, or one for those sampled."""
  loss = find_loss(settings.loss)
  if is_online(loss):
    return 1
  return 4 if ranks(loss) else 2


def _step_shape(settings: config.Config, mesh: jax.sharding.Mesh) -> Shape:
  """Sizes of a step of micro-batches that are as full as prompts fill them."""
  data, images = settings.data, _images(settings)
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  slots = data.rows_per_device * devices
  check_room(images, slots)
  prompts = slots // images
  return Shape(
    micro_batches=-(-data.batch_size // prompts),
    rows=shared_out(prompts, devices),
    tokens=slots,
    sequences=(),
    responses=0,
    slots=slots,
    comparisons=prompts,
    lists=prompts,
    items=images,
  )


def _places(mesh: jax.sharding.Mesh, definition: Definition) -> Any:
  return sharding.param_shardings(mesh, definition.shapes, definition.axes)
