"""The objective of image models that learn from what they sample themselves.

Images are sampled within the step that learns from them. So nothing is kept
between steps, one step and one loop serve this objective as any other, and a
run that is killed goes on with the same bits.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref import config, losses
from jaxpref.fit.image_objective import image_objective, predict
from jaxpref.fit.image_reward import Rate
from jaxpref.fit.loss import find_loss, is_online, own_options, takes_steps
from jaxpref.fit.objectives import Objective, Roles, Terms
from jaxpref.fit.offline_objective import offline_objective
from jaxpref.fit.rollout import IMAGES, Rollout, noisy_sampler, roll_out
from jaxpref.fit.transitions import (
  compare_transitions,
  ratio_metrics,
  repeat_rows,
)
from jaxpref.models.build import Definition, bind
from jaxpref.models.lora import overlay
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.sample.image import decode_pixels
from jaxpref.types import ImageBatch, Params, sum_valid

_Values = tuple[
  Float32[Array, "slots images steps"], Float32[Array, "slots images"]
]


def find_image_objective(
  definition: Definition,
  vae: Definition | None,
  settings: config.Config,
  scheduler: Scheduler,
  rate: Rate | None,
  *,
  training: bool = False,
) -> Objective:
  """Of the data's images, or of those that the policy samples, by the loss.

  Args: see `online_image_objective`; the former takes no `vae` and no `rate`.
  """
  if is_online(find_loss(settings.loss)):
    assert vae is not None
    assert rate is not None
    return online_image_objective(
      definition, vae, settings, scheduler, rate, training=training
    )
  if takes_steps(find_loss(settings.loss)):
    return offline_objective(definition, settings, scheduler, training=training)
  return image_objective(definition, settings, scheduler, training=training)


def online_image_objective(
  definition: Definition,
  vae: Definition,
  settings: config.Config,
  scheduler: Scheduler,
  rate: Rate,
  *,
  training: bool = False,
) -> Objective:
  """The objective of a loss of sampling steps, such as `pso`.

  A slot is a prompt. The policy samples two images of it by `config.sample`,
  from different noise, and `config.score` says which is chosen. Policy
  and reference then predict again where each noisy step began. Two images that
  are rated alike count as a pair of log-ratio 0: they have a loss of log 2 and
  no gradient. (That the count of pairs does not depend on rewards spares the
  step to sample twice.)

  Roles are those of `image_objective`, `vae` (frozen) and, where a model rates,
  `rater` (frozen).

  Reference: Miao et al. 2024 (https://arxiv.org/abs/2410.03190). The authors'
  code makes two to four updates of each set of images, and this one; it chooses
  the second of two images of equal reward (SDXL-Turbo) or does as this (DMD2).

  Args:
    definition: the UNet.
    vae: the autoencoder.
    settings: loss, sample, score, and the seed.
    scheduler: of the model's folder.
    rate: of `image_reward.find_reward`.
    training: whether an adapter drops inputs.
  """
  loss = find_loss(settings.loss)
  sampler = noisy_sampler(settings, scheduler)
  kind = scheduler.prediction_type

  def sample(policy: Params, frozen: Roles, batch: ImageBatch) -> Rollout:
    rows = _rows(batch, vae.config.factor, IMAGES)

    def ask(latents: Array, timestep: Array) -> Array:
      timesteps = jnp.full(len(latents), timestep, jnp.float32)
      return predict(definition, policy, rows, latents, timesteps)

    texts = rows.described
    if texts is not None:
      texts = texts[rows.prompt]

    return roll_out(
      ask,
      functools.partial(decode_pixels, bind(vae, frozen["vae"])),
      lambda pixels: rate(frozen, pixels, texts),
      sampler,
      batch,
      prediction=kind,
      seed=settings.train.seed,
    )

  def forward(
    trainable: Roles, frozen: Roles, batch: ImageBatch, key: jax.Array
  ) -> _Values:
    policy = overlay(frozen.get("base", {}), trainable["policy"])
    rollout = sample(jax.lax.stop_gradient(policy), frozen, batch)
    steps = rollout.made.before.shape[1]
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    logratio, *_ = compare_transitions(
      definition,
      policy,
      frozen,
      _rows(batch, vae.config.factor, IMAGES * steps),
      rollout.made,
      prediction=kind,
      dropout_key=key if drops else None,
    )
    reward = rollout.reward.reshape(-1, IMAGES)
    return logratio.reshape(-1, IMAGES, steps), reward

  def terms(
    state: Any, batch: ImageBatch, values: _Values
  ) -> tuple[Terms, Any, Terms]:
    views = _compared(*values)
    names, valid = losses.inputs(loss), batch.slots.valid
    each = loss(*(views[name] for name in names), **own_options(settings.loss))
    counted = jnp.broadcast_to(valid[:, None], each.shape)
    told = valid & (values[1][:, 0] != values[1][:, 1])
    metrics = _rewards(values[1], valid, told) | ratio_metrics(
      views["chosen_step_logratio"],
      views["rejected_step_logratio"],
      told,
      settings.loss,
    )
    return (
      {"loss": sum_valid(each, counted)},
      state,
      jax.lax.stop_gradient(metrics),
    )

  return Objective(forward, terms)


def _rows(batch: ImageBatch, factor: int, times: int) -> ImageBatch:
  """The batch with so many rows for each slot, of images without a crop."""
  batch = repeat_rows(batch, times)
  height, width = (factor * side for side in batch.mean.shape[1:3])
  size = jnp.asarray([height, width, 0, 0, height, width], jnp.float32)
  sizes = jnp.broadcast_to(size, batch.sizes.shape)
  return dataclasses.replace(batch, sizes=sizes)


def _compared(
  logratio: Float32[Array, "slots images steps"],
  reward: Float32[Array, "slots images"],
) -> Mapping[str, Float32[Array, "slots steps"]]:
  """Of both sides, by the names that losses have; 0 where none is better."""
  first, second = reward[:, :1], reward[:, 1:]
  one, two = logratio[:, 0], logratio[:, 1]
  ties = first == second
  return {
    "chosen_step_logratio": jnp.where(
      ties, 0.0, jnp.where(first > second, one, two)
    ),
    "rejected_step_logratio": jnp.where(
      ties, 0.0, jnp.where(first > second, two, one)
    ),
  }


def _rewards(
  reward: Float32[Array, "slots images"],
  valid: Bool[Array, " slots"],
  told: Bool[Array, " slots"],
) -> Terms:
  """What the rater gives, beside `rewards/`, which are the policy's own."""
  mean = lambda x, where=valid: sum_valid(x.astype(jnp.float32), where)
  return {
    "reward/mean": mean(jnp.mean(reward, axis=1)),
    "reward/chosen": mean(jnp.max(reward, axis=1)),
    "reward/rejected": mean(jnp.min(reward, axis=1)),
    "reward/ties": mean(valid & ~told),
  }
