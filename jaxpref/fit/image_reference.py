"""The reference of an image model: cached, live, or the base of an adapter."""

import dataclasses

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.loss import find_loss, needs_reference
from jaxpref.models.build import Definition, define
from jaxpref.models.sdxl.config import UNetConfig


def with_image_mode(settings: config.Config) -> config.Config:
  """The config with what `reference.mode` comes to for images.

  'auto' caches where a prompt meets the same noise again (`noise_bank`). Else
  the reference is the base under a new adapter, or a live copy.

  Raises UserError where there is nothing that could be cached.
  """
  mode, lora = settings.reference.mode, settings.model.lora
  bank = settings.diffusion.noise_bank
  if mode == "cached" and not bank:
    raise UserError(
      "config.reference.mode is 'cached', and config.diffusion.noise_bank is "
      "0: each time a prompt comes it has another noise, for which nothing is "
      "cached. Set noise_bank to how many noises a prompt should have, or the "
      "mode to auto, live or base."
    )
  if (mode == "cached" or bank) and settings.diffusion.inversion_steps:
    raise UserError(
      "config.diffusion.inversion_steps lets the model that trains choose the "
      "noise, which is another after each step: neither a noise_bank nor "
      "reference.mode=cached can hold it. Set noise_bank to 0 and the mode to "
      "auto, live or base; or inversion_steps to 0."
    )
  if settings.reference.fill == "during":
    raise UserError(
      "config.reference.fill is 'during', and the errors of images are cached "
      "before training. Set it to before."
    )
  if not needs_reference(find_loss(settings.loss)):
    mode = "none"
  elif mode == "auto" and bank:
    mode = "cached"
  elif mode == "auto":
    shares = lora.rank and not lora.path and not settings.reference.path
    mode = "base" if shares else "live"
  reference = dataclasses.replace(settings.reference, mode=mode)
  return dataclasses.replace(settings, reference=reference)


def image_roles(
  settings: config.Config, definition: Definition
) -> dict[str, Definition]:
  """The frozen models and factors, by role: an adapter's base, the reference.

  Under an adapter that is gone on from, the reference is the base with the
  adapter as it was, unless reference.path or reference.mode=base say otherwise.

  Args:
    settings: with the mode that `with_image_mode` found.
    definition: of the policy.
  """
  base, reference = definition.base, settings.reference
  found = {"base": base} if base else {}
  if reference.mode != "live":
    return found
  if is_other(settings) or not base:
    return {**found, "reference": base or definition}
  if settings.model.lora.path and not reference.path:
    return {**found, "reference_factors": definition}
  return found


def is_other(settings: config.Config) -> bool:
  """Whether the reference is of another folder than the model."""
  return settings.reference.path not in ("", settings.model.path)


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
