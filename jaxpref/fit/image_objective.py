"""The objective of image models: from latents to the terms of a loss.

A slot's value is minus half the mean squared error of what the model predicts
of its noisy latent (`losses.diffusion`). It takes the place of a response's
log-probability, so that losses of pairs and lists are losses of images too.

The posterior's noise, the timestep and the noise of an image are functions of
the seed, its prompt's number and how often that was drawn: the same on any
mesh, in any batch and after a restart.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxpref import config, losses, sharding
from jaxpref.fit.loss import (
  beta,
  find_loss,
  needs_reference,
  own_options,
)
from jaxpref.fit.merge import merge_images
from jaxpref.fit.objectives import Objective, Roles, Terms, loss_term
from jaxpref.fit.views import Views
from jaxpref.losses.diffusion import denoising_error, denoising_logratio
from jaxpref.models.build import Definition, bind
from jaxpref.models.lora import overlay
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.ops.noise import (
  add_noise,
  draw_flow_times,
  draw_timesteps,
  level_at,
  target,
)
from jaxpref.types import ImageBatch, Params, Term, sum_valid


@dataclasses.dataclass(frozen=True)
class Noising:
  """What the model is asked: noisy latents, and what it should predict."""

  noisy: Float32[Array, "slots y x c"]
  timestep: Float32[Array, " slots"]
  target: Float32[Array, "slots y x c"]


def noise_images(
  batch: ImageBatch,
  scheduler: Scheduler,
  settings: config.Diffusion,
  seed: int,
) -> Noising:
  """Draws a latent of each posterior, a timestep and noise, and mixes them.

  Args:
    batch: one micro-batch.
    scheduler: of the model.
    settings: what the images of a prompt share.
    seed: of all that is drawn.
  """
  own = _keys(batch, seed)
  shape = batch.mean.shape[1:]
  normal = jax.vmap(lambda key: jax.random.normal(key, shape))
  latent = batch.mean + batch.std * normal(_for(own.image, 0))
  noise = normal(_for(own.prompt if settings.share_noise else own.image, 1))
  shared = own.prompt if settings.share_timestep else own.image
  keys = _for(shared, 2)
  kind = scheduler.prediction_type
  if kind == "flow":
    time = draw_flow_times(keys, shift=scheduler.shift)
    level, timestep = (1.0 - time, time), scheduler.num_train_timesteps * time
  else:
    allowed = settings.timesteps or range(scheduler.num_train_timesteps)
    drawn = draw_timesteps(keys, allowed)
    table = jnp.asarray(scheduler.alpha_bar(), jnp.float32)
    level, timestep = level_at(drawn, table), drawn.astype(jnp.float32)
  noisy = add_noise(latent, noise, *level)
  return Noising(noisy, timestep, target(kind, latent, noise, *level))


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
  ) -> tuple[Array, Array | None]:
    asked = noise_images(batch, scheduler, settings.diffusion, seed)
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    policy = overlay(frozen.get("base", {}), trainable["policy"])
    prediction = predict(
      definition, policy, batch, asked, key if drops else None
    )
    error = denoising_error(prediction, asked.target)
    if not needs_reference(loss):
      return error, None
    if batch.ref_error is not None:
      return error, 0.5 * (batch.ref_error - error)
    ref = jax.lax.stop_gradient(_reference(definition, frozen, batch, asked))
    return error, denoising_logratio(prediction, ref, asked.target)

  def terms(
    state: Any, batch: ImageBatch, values: tuple[Array, Array | None]
  ) -> tuple[Terms, Any, Terms]:
    views = ImageViews(batch, *values, unit)
    found = {"loss": loss_term(loss, own_options(settings.loss), views)}
    metrics = _metrics(views, beta(settings.loss))
    return found, state, jax.lax.stop_gradient(metrics)

  return Objective(forward, terms, merge_images if coupled else None)


def reference_errors(
  definition: Definition, settings: config.Config, scheduler: Scheduler
) -> Callable[[Params, ImageBatch], Float32[Array, "micros slots"]]:
  """What computes the reference's error of every slot of a step.

  Arguments as those of `image_objective`; the noise is the same as there.
  """
  whole = definition.base or definition

  @jax.jit
  def score(
    params: Params, batch: ImageBatch
  ) -> Float32[Array, "micros slots"]:
    def one(part: ImageBatch) -> Float32[Array, " slots"]:
      asked = noise_images(
        part, scheduler, settings.diffusion, settings.train.seed
      )
      return denoising_error(predict(whole, params, part, asked), asked.target)

    return jax.lax.map(one, batch)

  return score


def predict(
  definition: Definition,
  params: Params,
  batch: ImageBatch,
  asked: Noising,
  dropout_key: Any = None,
) -> Float32[Array, "slots y x c"]:
  """What the UNet predicts of every slot."""
  added = {"text_embeds": batch.pooled[batch.prompt], "time_ids": batch.sizes}
  return bind(definition, params, dropout_key)(
    sharding.constrain(asked.noisy, ("batch", None, None, None)),
    asked.timestep,
    batch.context[batch.prompt],
    added if definition.config.addition_embed_type else None,
  ).astype(jnp.float32)


class ImageViews(Views):
  """Errors, values and gains of images, by slot and by side of a pair."""

  def __init__(
    self,
    batch: ImageBatch,
    error: Float32[Array, " slots"],
    gain: Float32[Array, " slots"] | None,
    unit: losses.Unit,
  ) -> None:
    self.batch: Any = batch
    self.unit = unit
    self.error, self._gain = error, gain

  @property
  def has_reference(self) -> bool:
    return self._gain is not None

  @property
  def valid(self) -> Array:
    """As of text, where a sequence is an image."""
    return self.batch.slots.valid if self.unit == "sequence" else super().valid

  def slot_values(self, what: str) -> Float32[Array, " slots"]:
    """error, score, logp = -½ error or logratio, of every slot."""
    if what == "error":
      return self.error
    if what == "score":
      return self.batch.slots.score
    if what.removeprefix("mean_") == "logp":  # a mean over pixels already
      return -0.5 * self.error
    assert self._gain is not None  # `check_mode` refuses before
    return self._gain


def _reference(
  definition: Definition, frozen: Roles, batch: ImageBatch, asked: Noising
) -> Array:
  whole = definition.base or definition
  if "reference" in frozen:
    return predict(whole, frozen["reference"], batch, asked)
  if "reference_factors" in frozen:
    laid = overlay(frozen["base"], frozen["reference_factors"])
    return predict(definition, laid, batch, asked)
  return predict(whole, frozen["base"], batch, asked)


def _metrics(views: ImageViews, beta: float) -> Terms:
  """Errors of both sides, and rewards where there is a pair to compare."""

  def mean(x: Array) -> Term:
    return sum_valid(x.astype(jnp.float32), views.told)

  what = "logratio" if views.has_reference else "logp"
  chosen, rejected = (
    beta * views[f"{side}_{what}"] for side in ("chosen", "rejected")
  )
  return {
    "error": sum_valid(views.error, views.batch.slots.valid),
    "error/chosen": mean(views["chosen_error"]),
    "error/rejected": mean(views["rejected_error"]),
    "rewards/chosen": mean(chosen),
    "rewards/rejected": mean(rejected),
    "rewards/margins": mean(chosen - rejected),
    "rewards/accuracies": mean(chosen > rejected),
    "rewards/ties": mean(chosen == rejected),
  }


@dataclasses.dataclass(frozen=True)
class _Keys:
  prompt: Key[Array, " slots"]
  image: Key[Array, " slots"]


def _keys(batch: ImageBatch, seed: int) -> _Keys:
  fold = jax.vmap(jax.random.fold_in)
  base = jnp.broadcast_to(jax.random.key(seed), batch.draw.shape)
  prompt = fold(fold(base, batch.slots.example_id), batch.draw)
  return _Keys(prompt, fold(_for(prompt, 3), batch.item))


def _for(keys: Key[Array, " slots"], purpose: int) -> Key[Array, " slots"]:
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)
