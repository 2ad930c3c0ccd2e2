"""The reference of an image model: a live copy, or the base of an adapter."""

import dataclasses

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.loss import find_loss, needs_reference
from jaxpref.models.build import Definition, define
from jaxpref.models.sdxl.config import UNetConfig


def with_image_mode(settings: config.Config) -> config.Config:
  """The config with what `reference.mode` comes to for images."""
  mode, lora = settings.reference.mode, settings.model.lora
  if mode == "cached" or settings.reference.fill == "during":
    raise UserError(
      "config.reference.mode is 'cached', which is not there for images yet. "
      "Set it to auto, live or base."
    )
  if not needs_reference(find_loss(settings.loss)):
    mode = "none"
  elif mode == "auto":
    shares = lora.rank and not lora.path and not settings.reference.path
    mode = "base" if shares else "live"
  reference = dataclasses.replace(settings.reference, mode=mode)
  return dataclasses.replace(settings, reference=reference)


def image_roles(
  settings: config.Config, definition: Definition
) -> dict[str, Definition]:
  """The frozen models, by role: an adapter's base, and a live reference.

  Args:
    settings: with the mode that `with_image_mode` found.
    definition: of the policy.
  """
  base, path = definition.base, settings.reference.path
  frozen = {"base": base} if base else {}
  other = path and path != settings.model.path
  if settings.reference.mode == "live" and (other or not base):
    frozen["reference"] = base or definition
  return frozen


def define_unet(settings: config.Model, shape: UNetConfig) -> Definition:
  """The UNet that trains, with its adapter.

  Raises UserError for parameters that could not be trained.
  """
  lora = settings.lora
  if settings.param_dtype != "float32" and not lora.rank:
    raise UserError(
      f"config.model.param_dtype is {settings.param_dtype!r}, and all weights "
      "train: small updates would be lost to rounding. Set it to float32 (the "
      "compute is config.model.dtype's), or train an adapter by "
      "config.model.lora.rank."
    )
  return define(
    shape,
    dtype=settings.dtype,
    param_dtype=settings.param_dtype,
    remat=settings.remat,
    lora=lora,
  )
