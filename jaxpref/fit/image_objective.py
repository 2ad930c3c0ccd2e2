"""The objective of image models: from latents to the terms of a loss.

A slot's value is minus half the mean squared error of what the model predicts
of its noisy latent (`losses.diffusion`). It takes the place of a response's
log-probability, so that losses of pairs and lists are losses of images too.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref import config, losses, sharding
from jaxpref.fit.loss import (
  beta,
  damp,
  find_loss,
  needs_reference,
  own_options,
)
from jaxpref.fit.merge import merge_images
from jaxpref.fit.noising import invert_images, noise_images
from jaxpref.fit.objectives import Objective, Roles, Terms, loss_term
from jaxpref.fit.views import Views
from jaxpref.losses.diffusion import denoising_error, denoising_logratio
from jaxpref.models.build import Definition, bind
from jaxpref.models.lora import overlay
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.types import ImageBatch, Params, Pictures, Term, sum_valid


def image_objective(
  definition: Definition,
  settings: config.Config,
  scheduler: Scheduler,
  *,
  training: bool = False,
) -> Objective:
  """The objective of `settings.loss` on latents.

  Roles are those of `text_objective`. A reference that is computed as it goes
  sees the very same noisy latents as the policy.

  Args:
    definition: the UNet.
    settings: the loss, what is shared, and the seed.
    scheduler: what the UNet was trained with.
    training: whether an adapter drops inputs.
  """
  loss = find_loss(settings.loss)
  unit, coupled, _ = losses.spec(loss)
  seed = settings.train.seed

  def forward(
    trainable: Roles, frozen: Roles, batch: ImageBatch, key: jax.Array
  ) -> tuple[Array, Array | None, Array]:
    policy = overlay(frozen.get("base", {}), trainable["policy"])
    if settings.diffusion.inversion_steps:
      ask = functools.partial(
        predict, definition, jax.lax.stop_gradient(policy), batch
      )
      asked = invert_images(ask, batch, scheduler, settings.diffusion, seed)
    else:
      asked = noise_images(batch, scheduler, settings.diffusion, seed)
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    prediction = predict(
      definition,
      policy,
      batch,
      asked.noisy,
      asked.timestep,
      key if drops else None,
    )
    error = denoising_error(prediction, asked.target)
    time = asked.timestep / scheduler.num_train_timesteps
    if not needs_reference(loss):
      return error, None, time
    if batch.ref_error is not None:
      return error, 0.5 * (batch.ref_error - error), time
    ref = jax.lax.stop_gradient(
      predict_reference(definition, frozen, batch, asked.noisy, asked.timestep)
    )
    return error, denoising_logratio(prediction, ref, asked.target), time

  def terms(
    state: Any, batch: Pictures, values: tuple[Array, Array | None, Array]
  ) -> tuple[Terms, Any, Terms]:
    views = ImageViews(batch, *values, unit)
    views.damp = damp(settings.loss)
    found = {"loss": loss_term(loss, own_options(settings.loss), views)}
    metrics = _metrics(views, beta(settings.loss))
    return found, state, jax.lax.stop_gradient(metrics)

  return Objective(forward, terms, merge_images if coupled else None)


def reference_errors(
  definition: Definition, settings: config.Config, scheduler: Scheduler
) -> Callable[[Roles, ImageBatch], Float32[Array, "micros slots"]]:
  """What computes the reference's error of every slot of a step.

  Of the frozen models that `image_objective` would have; arguments as there,
  and so is the noise.
  """

  @jax.jit
  def score(frozen: Roles, batch: ImageBatch) -> Float32[Array, "micros slots"]:
    def one(part: ImageBatch) -> Float32[Array, " slots"]:
      asked = noise_images(
        part, scheduler, settings.diffusion, settings.train.seed
      )
      output = predict_reference(
        definition, frozen, part, asked.noisy, asked.timestep
      )
      return denoising_error(output, asked.target)

    return jax.lax.map(one, batch)

  return score


def predict(
  definition: Definition,
  params: Params,
  batch: ImageBatch,
  noisy: Float32[Array, "slots y x c"],
  timestep: Float32[Array, " slots"],
  dropout_key: Any = None,
) -> Float32[Array, "slots y x c"]:
  """What the UNet predicts of every slot."""
  added = {"text_embeds": batch.pooled[batch.prompt], "time_ids": batch.sizes}
  return bind(definition, params, dropout_key)(
    sharding.constrain(noisy, ("batch", None, None, None)),
    timestep,
    batch.context[batch.prompt],
    added if definition.config.addition_embed_type else None,
  ).astype(jnp.float32)


def predict_reference(
  definition: Definition,
  frozen: Roles,
  batch: ImageBatch,
  noisy: Float32[Array, "slots y x c"],
  timestep: Float32[Array, " slots"],
) -> Float32[Array, "slots y x c"]:
  """What the frozen reference predicts; roles as of `text_objective`."""
  if "reference_factors" in frozen:
    laid = overlay(frozen["base"], frozen["reference_factors"])
    return predict(definition, laid, batch, noisy, timestep)
  whole = definition.base or definition
  params = frozen["reference" if "reference" in frozen else "base"]
  return predict(whole, params, batch, noisy, timestep)


class ImageViews(Views):
  """Errors, gains and times of images, by slot and by side of a pair.

  An image's time is its timestep's share of all: near 1 it is mostly noise.
  """

  def __init__(
    self,
    batch: Pictures,
    error: Float32[Array, " slots"],
    gain: Float32[Array, " slots"] | None,
    time: Float32[Array, " slots"],
    unit: losses.Unit,
  ) -> None:
    self.batch: Any = batch
    self.unit = unit
    self.error, self._gain, self.time = error, gain, time

  @property
  def has_reference(self) -> bool:
    return self._gain is not None

  @property
  def valid(self) -> Array:
    """As of text, where a sequence is an image."""
    return self.batch.slots.valid if self.unit == "sequence" else super().valid

  def slot_values(self, what: str) -> Float32[Array, " slots"]:
    """error, time, score, logp = -½ error or logratio, of every slot."""
    if what in ("error", "time"):
      return self.error if what == "error" else self.time
    if what == "score":
      return self.batch.slots.score
    if what.removeprefix("mean_") == "logp":  # a mean over pixels already
      return -0.5 * self.error
    assert self._gain is not None  # `check_mode` refuses before
    return self._gain


def _metrics(views: ImageViews, beta: float) -> Terms:
  """Errors of both sides, and rewards where there is a pair to compare."""

  def mean(x: Array, where: Array | bool = True) -> Term:
    return sum_valid(x.astype(jnp.float32), views.told & where)

  what = "logratio" if views.has_reference else "logp"
  chosen, rejected = (
    beta * views[f"{side}_{what}"] for side in ("chosen", "rejected")
  )
  fell = {"rewards/both_fell": views.both_fell} if views.has_reference else {}
  quarter = jnp.floor(4.0 * views["chosen_time"])
  return {
    **{name: mean(share) for name, share in fell.items()},
    "error": sum_valid(views.error, views.batch.slots.valid),
    "error/chosen": mean(views["chosen_error"]),
    "error/rejected": mean(views["rejected_error"]),
    "rewards/chosen": mean(chosen),
    "rewards/rejected": mean(rejected),
    "rewards/margins": mean(chosen - rejected),
    "rewards/accuracies": mean(chosen > rejected),
    "rewards/ties": mean(chosen == rejected),
    **{
      # By how noisy the chosen image was: 1 the least.
      f"rewards/margins/noise_{n}": mean(chosen - rejected, quarter == n - 1)
      for n in (1, 2, 3, 4)
    },
  }
