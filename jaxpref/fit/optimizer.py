"""Optimizers and learning-rate schedules, from optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpref import config


def make_schedule(settings: config.Optimizer, num_steps: int) -> optax.Schedule:
  """Learning rate by update (from 0): linear warm-up, then `schedule`.

  The first update of a warm-up has learning rate 0, as in transformers.
  """
  peak, warmup = settings.learning_rate, settings.warmup_steps
  decay_steps = max(1, num_steps - warmup)
  after: optax.Schedule = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
    "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
  }[settings.schedule]()
  if not warmup:
    return after
  ramp = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
  settings: config.Optimizer, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """AdamW, after clipping by global norm where `grad_clip` is not 0.

  Its state has an average of the parameters where `ema` is not 0.
  """
  adamw = optax.adamw(
    schedule,
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    mask=_is_decayed,
  )
  tx: optax.GradientTransformation = adamw
  if settings.grad_clip:
    tx = optax.chain(optax.clip_by_global_norm(settings.grad_clip), adamw)
  return _averaging(tx, settings.ema) if settings.ema else tx


class Averaged(NamedTuple):
  """The state of an optimizer that keeps an average of the parameters."""

  average: Any
  inner: Any  # of the optimizer itself


def averaged(opt_state: Any, params: Any) -> Any:
  """The average that an optimizer keeps; the parameters where it keeps none."""
  return opt_state.average if isinstance(opt_state, Averaged) else params


def _averaging(
  tx: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
  """average <- decay average + (1 - decay) parameters, after each update.

  It begins at the parameters, and needs no correction then.
  """

  def init(params: Any) -> Averaged:
    return Averaged(jax.tree.map(jnp.copy, params), tx.init(params))

  def update(
    grads: Any, state: Averaged, params: Any = None
  ) -> tuple[Any, Averaged]:
    updates, inner = tx.update(grads, state.inner, params)
    average = optax.incremental_update(
      optax.apply_updates(params, updates), state.average, 1.0 - decay
    )
    return updates, Averaged(average, inner)

  return optax.GradientTransformation(init, update)


def _is_decayed(params: Any) -> Any:
  """Matrices decay; biases and the scales of norms do not."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key not in ("bias", "scale"), params
  )
