"""The training step on latents, before any data or weights are read."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.fit.image_objective import image_objective
from jaxpref.fit.image_reference import (
  define_unet,
  image_roles,
  with_image_mode,
)
from jaxpref.fit.loss import check_suits, find_loss, ranks
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.put import batch_places
from jaxpref.fit.reference import check_mode
from jaxpref.fit.step import state_shapes, state_shardings
from jaxpref.models.build import Definition, bind
from jaxpref.models.sdxl.config import UNetConfig, sdxl_base
from jaxpref.models.sdxl.parts import read_part
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.models.source import resolve_model
from jaxpref.plan.job import Job
from jaxpref.plan.program import computed_flops
from jaxpref.types import Comparisons, ImageBatch, Lists, Slots

_TOKENS = 77  # of CLIP's text encoders
_FACTOR = 8  # pixels to a latent, of Stable Diffusion's autoencoders


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
  settings = with_image_mode(settings)
  definition = define_unet(model, _shape(model))
  schedule = make_schedule(settings.optimizer, settings.train.steps)
  tx = make_optimizer(settings.optimizer, schedule)
  shapes, places = {"policy": definition.shapes}, _places(mesh, definition)
  where = state_shardings(mesh, tx, shapes, {"policy": places})
  latent = _latent(settings, definition)
  batch = _batch(settings, definition, mesh, latent)
  micro_batches, slots = batch.slots.valid.shape
  return Job(
    objective=image_objective(definition, settings, Scheduler(), training=True),
    tx=tx,
    schedule=schedule,
    state=state_shapes(shapes, tx, where),
    frozen={
      role: sharding.placed(each.shapes, _places(mesh, each))
      for role, each in image_roles(settings, definition).items()
    },
    batch=sharding.placed(batch, batch_places(mesh, batch)),
    useful_flops=_images(settings)
    * settings.data.batch_size
    * image_flops(settings, definition, latent),
    assumes=(
      f"{micro_batches} x {slots} latents of {latent[0]} x {latent[1]}, "
      f"{_images(settings)} of a prompt. {settings.data.batch_size} prompts a "
      "step.",
      f"Reference: {settings.reference.mode}. Compute: {model.dtype}.",
    ),
  )


def image_flops(
  settings: config.Config, definition: Definition, latent: tuple[int, ...]
) -> float:
  """Useful floating-point operations of an image of a step.

  With forward cost F, training all weights takes 3 F, and an adapter's factors
  2 F and what they cost themselves, which is left out. A reference that is
  computed as it goes adds F.

  Args:
    settings: with the mode that `with_image_mode` found.
    definition: of the UNet, with or without an adapter.
    latent: Y, X and C.
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
  return once * ((2.0 if definition.base else 3.0) + reference)


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


def _latent(
  settings: config.Config, definition: Definition
) -> tuple[int, int, int]:
  shape = definition.config
  side = settings.data.resolution // _FACTOR or shape.sample_size or 64
  return side, side, shape.in_channels


def _pooled(shape: UNetConfig) -> int:
  """Entries of the pooled text that SDXL's conditions take."""
  sizes = 6 * (shape.addition_time_embed_dim or 0)
  return max(1, (shape.projection_class_embeddings_input_dim or 0) - sizes)


def _images(settings: config.Config) -> int:
  """Of a prompt: two to compare, or a list of four."""
  return 4 if ranks(find_loss(settings.loss)) else 2


def _batch(
  settings: config.Config,
  definition: Definition,
  mesh: jax.sharding.Mesh,
  latent: tuple[int, ...],
) -> ImageBatch:
  data, shape = settings.data, definition.config
  devices = mesh.shape["data"] * mesh.shape["fsdp"]
  slots, images = data.rows_per_device * devices, _images(settings)
  prompts = slots // images
  if not prompts:
    raise UserError(
      f"A prompt has {images} images, which are computed together, and {slots} "
      "fit: config.data.rows_per_device, images of one micro-batch on one "
      "device, times the devices. Raise it."
    )
  lead = -(-data.batch_size // prompts)
  texts = -(-prompts // devices) * devices

  def array(kind: Any, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((lead, *sizes), kind)

  return ImageBatch(
    mean=array(np.float32, slots, *latent),
    std=array(np.float32, slots, *latent),
    prompt=array(np.int32, slots),
    item=array(np.int32, slots),
    draw=array(np.int32, slots),
    sizes=array(np.float32, slots, 6),
    ref_error=None,
    context=array(np.float32, texts, _TOKENS, shape.cross_attention_dim),
    pooled=array(np.float32, texts, _pooled(shape)),
    slots=Slots(
      example_id=array(np.int32, slots),
      valid=array(np.bool_, slots),
      label=array(np.int32, slots),
      mismatched=array(np.bool_, slots),
      last=array(np.int32, slots),
      score=array(np.float32, slots),
    ),
    comparisons=Comparisons(
      better=array(np.int32, prompts),
      worse=array(np.int32, prompts),
      valid=array(np.bool_, prompts),
      weight=array(np.float32, prompts),
      preference=array(np.float32, prompts),
    ),
    lists=Lists(
      slot=array(np.int32, prompts, images),
      valid=array(np.bool_, prompts, images),
    ),
  )


def _places(mesh: jax.sharding.Mesh, definition: Definition) -> Any:
  return sharding.param_shardings(mesh, definition.shapes, definition.axes)
