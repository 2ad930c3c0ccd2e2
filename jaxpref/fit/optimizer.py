"""Optimizers and learning-rate schedules, from optax."""

from typing import Any

import jax
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
  """AdamW, after clipping by global norm where `grad_clip` is not 0."""
  adamw = optax.adamw(
    schedule,
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    mask=_is_decayed,
  )
  if not settings.grad_clip:
    return adamw
  return optax.chain(optax.clip_by_global_norm(settings.grad_clip), adamw)


def _is_decayed(params: Any) -> Any:
  """Matrices decay; biases and the scales of norms do not."""
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key not in ("bias", "scale"), params
  )
