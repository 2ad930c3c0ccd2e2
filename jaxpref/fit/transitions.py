"""How much likelier a policy makes a sampler's steps than its reference."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref import config
from jaxpref.fit.image_objective import predict, predict_reference
from jaxpref.fit.loss import beta, option
from jaxpref.fit.noising import Transitions
from jaxpref.fit.objectives import Roles, Terms
from jaxpref.losses.diffusion import denoising_step_logratio
from jaxpref.models.build import Definition
from jaxpref.sample.denoise import step_mean
from jaxpref.types import ImageBatch, Params, Term, sum_valid


class Compared(NamedTuple):
  """What two models make of them."""

  logratio: Float32[Array, "images steps"]  # nats an element
  output: Float32[Array, "images steps y x c"]  # what the policy predicts
  ref_output: Float32[Array, "images steps y x c"]  # without gradient


def compare_transitions(
  definition: Definition,
  policy: Params,
  frozen: Roles,
  rows: ImageBatch,
  made: Transitions,
  *,
  prediction: str,
  dropout_key: Any = None,
) -> Compared:
  """Asks policy and reference where each step began.

  Args:
    definition: the UNet.
    policy: its parameters, whole.
    frozen: as of `image_objective`.
    rows: a batch with a row for each step of each image; see `repeat_rows`.
    made: the steps; a constant.
    prediction: what the models predict; see `ops.noise`.
    dropout_key: of an adapter that drops inputs.
  """
  shape, (images, steps) = made.before.shape, made.before.shape[:2]
  # All steps at once, slot by slot: those of a prompt are on one device. In a
  # loop, the gradients of convolutions take a CPU fifteen times as long.
  asked = (
    rows,
    made.before.reshape(-1, *shape[2:]),
    jnp.tile(made.steps.timestep, images),
  )
  output = predict(definition, policy, *asked, dropout_key)
  ref = jax.lax.stop_gradient(predict_reference(definition, frozen, *asked))
  output, ref = output.reshape(shape), ref.reshape(shape)
  land = jax.vmap(functools.partial(step_mean, prediction), (1, 1, 0), 1)
  mean, ref_mean = (
    land(each, made.before, made.steps) for each in (output, ref)
  )
  std = jnp.broadcast_to(made.steps.std, (images, steps))
  logratio = denoising_step_logratio(made.after, mean, ref_mean, std)
  return Compared(logratio, output, ref)


def repeat_rows(batch: ImageBatch, times: int) -> ImageBatch:
  """The batch with so many rows for each slot."""
  prompt, sizes = (
    jnp.repeat(x, times, axis=0) for x in (batch.prompt, batch.sizes)
  )
  return dataclasses.replace(batch, prompt=prompt, sizes=sizes)


def ratio_metrics(
  chosen: Float32[Array, "pairs steps"],
  rejected: Float32[Array, "pairs steps"],
  told: Bool[Array, " pairs"],
  settings: config.Loss,
) -> Terms:
  """Means over pairs that are told apart, of the means over their steps."""

  def mean(x: Array) -> Term:
    return sum_valid(jnp.mean(x.astype(jnp.float32), axis=-1), told)

  scale, clip = beta(settings), option(settings, "clip", 0.0)
  one, other = scale * chosen, scale * rejected
  metrics = {
    "rewards/chosen": mean(one),
    "rewards/rejected": mean(other),
    "rewards/margins": mean(one - other),
    "rewards/accuracies": mean(one > other),
    "rewards/ties": mean(one == other),
  }
  if clip:
    beyond = jnp.abs(jnp.expm1(jnp.stack([chosen, rejected]))) > clip
    metrics["ratios/clipped"] = mean(jnp.mean(beyond, 0, dtype=jnp.float32))
  return metrics
