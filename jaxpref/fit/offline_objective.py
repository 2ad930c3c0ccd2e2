"""The objective of few-step image models that learn from pairs of a data set.

Images are noised to all timesteps that a few-step sampler visits, and what is
compared are its steps from each to the next.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref import config, losses
from jaxpref.errors import UserError
from jaxpref.fit.loss import find_loss, own_options, takes_steps
from jaxpref.fit.noising import noise_steps
from jaxpref.fit.objectives import Objective, Roles, Terms, loss_term
from jaxpref.fit.rollout import noisy_sampler
from jaxpref.fit.transitions import (
  compare_transitions,
  ratio_metrics,
  repeat_rows,
)
from jaxpref.fit.views import Views
from jaxpref.losses.diffusion import denoising_error, denoising_logratio
from jaxpref.models.build import Definition
from jaxpref.models.lora import overlay
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.types import ImageBatch, Pictures, sum_valid

_ByStep = Float32[Array, "slots steps"]
_Values = tuple[_ByStep, _ByStep, _ByStep]


def offline_objective(
  definition: Definition,
  settings: config.Config,
  scheduler: Scheduler,
  *,
  training: bool = False,
) -> Objective:
  """The objective of a loss of noised steps, such as `pso_offline`.

  A slot is an image, which `noise_steps` noises to the steps of
  `config.sample`; the last one, without noise, is left out. All of them are
  computed at once: each of the `data.rows_per_device` images of a device is so
  many latents.

  Roles are those of `image_objective`, and so are the arguments.
  """
  loss = find_loss(settings.loss)
  sampler = noisy_sampler(settings, scheduler)
  kind = scheduler.prediction_type

  def forward(
    trainable: Roles, frozen: Roles, batch: ImageBatch, key: jax.Array
  ) -> _Values:
    policy = overlay(frozen.get("base", {}), trainable["policy"])
    made, target = noise_steps(
      batch, sampler, settings.diffusion, kind, settings.train.seed
    )
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    logratio, output, ref = compare_transitions(
      definition,
      policy,
      frozen,
      repeat_rows(batch, made.before.shape[1]),
      made,
      prediction=kind,
      dropout_key=key if drops else None,
    )
    gain = 2.0 * denoising_logratio(output, ref, target)
    return logratio, gain, denoising_error(output, target)

  def terms(
    state: Any, batch: Pictures, values: _Values
  ) -> tuple[Terms, Any, Terms]:
    views = StepViews(batch, *values, losses.spec(loss).unit)
    found = {"loss": loss_term(loss, own_options(settings.loss), views)}
    chosen, rejected = (views[name] for name in losses.inputs(loss))
    if losses.spec(loss).unit == "pair":  # one sigmoid for all steps
      chosen, rejected = (
        jnp.sum(x, axis=-1, keepdims=True) for x in (chosen, rejected)
      )
    fell = jnp.mean((chosen < 0.0) & (rejected < 0.0), axis=-1)
    error = jnp.mean(views.error, axis=-1)
    metrics = {
      "error": sum_valid(error, batch.slots.valid),
      "rewards/both_fell": sum_valid(fell.astype(jnp.float32), views.told),
      **ratio_metrics(chosen, rejected, views.told, settings.loss),
    }
    return found, state, jax.lax.stop_gradient(metrics)

  return Objective(forward, terms)


class StepViews(Views):
  """Ratios and gains of every step of the images, by side of a pair."""

  def __init__(
    self,
    batch: Pictures,
    logratio: _ByStep,
    gain: _ByStep,
    error: _ByStep,
    unit: losses.Unit,
  ) -> None:
    self.batch, self.unit = batch, unit
    self._values = {"noised_logratio": logratio, "noised_gain": gain}
    self.error = error

  def slot_values(self, what: str) -> _ByStep:
    """noised_logratio or noised_gain, of every slot."""
    return self._values[what]


def check_noised_steps(settings: config.Config) -> None:
  """Raises UserError where a loss of noised steps cannot have them.

  Of other losses nothing is asked.
  """
  if not takes_steps(find_loss(settings.loss)):
    return
  what = f"config.loss.name {settings.loss.name!r}"
  for field in dataclasses.fields(settings.diffusion):
    value = getattr(settings.diffusion, field.name)
    if value != field.default and field.name not in _KEPT:
      raise UserError(
        f"config.diffusion.{field.name} is {value}, and {what} noises images "
        "to all timesteps of config.sample.sampler and config.sample.steps. "
        "Leave it out."
      )
  if settings.reference.mode == "cached":
    raise UserError(
      f"config.reference.mode is 'cached', and of {what} nothing is cached. "
      "Set it to auto, live or base."
    )


_KEPT = ("share_noise", "drop_caption")
