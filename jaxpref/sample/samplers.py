"""Samplers as tables of numbers: eight of them take the same step.

A prediction at x stands for a latent and a noise, and a step goes to

    x' = to_latent latent + to_noise noise + std z,     z ~ N(0, 1)

Samplers differ in which timesteps they visit, how much noise they leave, and
how much of that is fresh. So DDPM and Euler ancestral are DDIM with eta = 1,
Euler is DDIM with eta = 0, and a flow model's Euler is it along a line. Two
extend the latent: DPM-Solver++ 2M by how it changed since the last step, LCM by
some of x itself.

Latents of diffusion models keep their variance here: x = alpha latent +
sigma noise, alpha² + sigma² = 1. Diffusers' Euler samplers hold x / alpha
instead, which is the same sampler in other units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Float32
import numpy as np

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.sdxl.scheduler import Scheduler
from jaxpref.ops import schedules
from jaxpref.types import Leaf


class Step(NamedTuple):
  """One step, or with a first axis all of them; float32."""

  timestep: Float32[Leaf, "*steps"]  # what the model is told
  alpha: Float32[Leaf, "*steps"]  # of the latent in x, when the model is asked
  sigma: Float32[Leaf, "*steps"]  # of the noise in it
  to_latent: Float32[Leaf, "*steps"]
  to_noise: Float32[Leaf, "*steps"]
  std: Float32[Leaf, "*steps"]
  extrapolate: Float32[Leaf, "*steps"]  # how much of the latent's last change
  skip: Float32[Leaf, "*steps"]  # share of x, in power, in the latent

  def at(self, index: Any) -> "Step":
    """One of all steps, or those of several indices, as arrays of JAX."""
    return Step(*(jnp.asarray(column[index]) for column in self))


class Sampler(NamedTuple):
  """All steps, the noisiest first, and how large the noise is at the start."""

  steps: Step
  start: float


def make_sampler(name: str, scheduler: Scheduler, steps: int) -> Sampler:
  """The sampler of a name; '' is the one that the model's folder names.

  Raises UserError for an unknown name, too many or too few steps, or a
  prediction that the sampler cannot use.
  """
  name = name or scheduler.sampler
  if name not in SAMPLERS:
    raise UserError(
      f"config.sample.sampler is {name!r}. {nearest(name, SAMPLERS)} '' takes "
      "the one of the model's folder."
    )
  if (name == "flow_euler") != (scheduler.prediction_type == "flow"):
    raise UserError(
      f"config.sample.sampler is {name!r}, and the model predicts "
      f"{scheduler.prediction_type!r}: 'flow_euler' is for flow models, and "
      "the other samplers are for the others."
    )
  sampler = SAMPLERS[name](scheduler, steps)
  if scheduler.prediction_type == "epsilon" and not sampler.steps.alpha.all():
    raise UserError(
      f"config.sample.sampler {name!r} starts at noise without any signal, of "
      "which a model that predicts 'epsilon' says nothing. Take 'euler', which "
      "starts just below, or a model with v_prediction."
    )
  return sampler


def started_at(sampler: Sampler, strength: float) -> Sampler:
  """The last steps alone, to go on from an image with noise added.

  Args:
    sampler: the whole of it.
    strength: the share of steps that are taken, above 0 and at most 1.

  The start is `add_noise(latent, noise, steps.alpha[0], steps.sigma[0])`.
  """
  total = len(sampler.steps.alpha)
  taken = int(total * strength)
  if not 1 <= taken <= total:
    raise UserError(
      f"config.sample.strength is {strength}, which takes {taken} of {total} "
      "steps; it must be at most 1 and take one step at least."
    )
  steps = Step(*(column[total - taken :] for column in sampler.steps))
  first = np.arange(taken) == 0
  steps = steps._replace(
    extrapolate=np.where(first, np.float32(0), steps.extrapolate)
  )
  return Sampler(steps, float(steps.sigma[0]))


def ddim(scheduler: Scheduler, steps: int, *, eta: float = 0.0) -> Sampler:
  """Song et al. 2020, eq. 12 and 16 (https://arxiv.org/abs/2010.02502).

  eta is the share of fresh noise: 0 makes it deterministic. As in diffusers, a
  step lands T // steps timesteps below, whatever is visited next.
  """
  alpha_bar, visited = _visited(scheduler, steps)
  after = visited - scheduler.num_train_timesteps // steps
  last = 1.0 if scheduler.set_alpha_to_one else alpha_bar[0]
  lands = np.where(after >= 0, alpha_bar[np.maximum(after, 0)], last)
  return Sampler(steps_between(visited, alpha_bar[visited], lands, eta), 1.0)


def ddpm(scheduler: Scheduler, steps: int) -> Sampler:
  """Ho et al. 2020, eq. 6 and 7 (https://arxiv.org/abs/2006.11239)."""
  alpha_bar, visited = _visited(scheduler, steps)
  asks = alpha_bar[visited]
  return Sampler(
    steps_between(visited, asks, np.append(asks[1:], 1.0), 1.0), 1.0
  )


def euler(scheduler: Scheduler, steps: int) -> Sampler:
  """Karras et al. 2022, algorithm 1 (https://arxiv.org/abs/2206.00364)."""
  return _euler(scheduler, steps, eta=0.0)


def euler_ancestral(scheduler: Scheduler, steps: int) -> Sampler:
  """Euler with as much fresh noise as DDPM adds.

  Reference: k-diffusion (https://github.com/crowsonkb/k-diffusion).
  """
  return _euler(scheduler, steps, eta=1.0)


def dpmpp_2m(scheduler: Scheduler, steps: int) -> Sampler:
  """DPM-Solver++ of second order, multistep, its last step of first order.

  Reference: Lu et al. 2022, algorithm 2 (https://arxiv.org/abs/2211.01095).
  """
  table = schedules.sigma_of(_above_zero(scheduler.alpha_bar()))
  if scheduler.use_karras_sigmas:
    ends = float(table[0]), float(table[-1])
    sigma = schedules.karras_sigmas(*ends, steps)
    visited = np.round(schedules.timestep_of_sigma(sigma, table))
  else:
    visited = _between(scheduler, steps)
    sigma = np.interp(visited, np.arange(len(table)), table)
  levels = np.append(1.0 / (1.0 + sigma**2), 1.0)
  # Steps in log(alpha / sigma); the last, to no noise at all, is infinite.
  width = np.log(sigma[:-1] / sigma[1:])
  extrapolate = np.zeros(steps)
  extrapolate[1:-1] = 0.5 * width[1:] / width[:-1]
  rows = steps_between(visited, levels[:-1], levels[1:], 0.0)
  return Sampler(rows._replace(extrapolate=_float(extrapolate)), 1.0)


def lcm(scheduler: Scheduler, steps: int) -> Sampler:
  """Latent consistency: jump to the latent, then add all the noise afresh.

  Reference: Luo et al. 2023, algorithm 3 (https://arxiv.org/abs/2310.04378).
  """
  alpha_bar, visited = _distilled(scheduler, steps)
  lands = np.append(alpha_bar[visited[1:]], 1.0)
  table = steps_between(visited, alpha_bar[visited], lands, 0.0)
  power = 0.25 / ((visited * scheduler.timestep_scaling) ** 2 + 0.25)
  fresh = _float(np.sqrt(1.0 - lands))
  table = table._replace(to_noise=0.0 * fresh, std=fresh, skip=_float(power))
  return Sampler(table, 1.0)


def tcd(scheduler: Scheduler, steps: int, *, gamma: float = 0.3) -> Sampler:
  """Trajectory consistency: jump some way below, then add noise back.

  gamma is the share of that way: 0 makes it deterministic.

  Reference: Zheng et al. 2024, algorithm 4 (https://arxiv.org/abs/2402.19159).
  """
  alpha_bar, visited = _distilled(scheduler, steps)
  after = np.append(visited[1:], 0)
  below = alpha_bar[np.floor((1.0 - gamma) * after).astype(np.int64)]
  lands = np.append(alpha_bar[after[:-1]], below[-1])
  table = steps_between(visited, alpha_bar[visited], lands, 0.0)
  kept = lands / below  # of the power there, when noise is added back
  return Sampler(
    table._replace(
      to_noise=_float(np.sqrt(kept * (1.0 - below))),
      std=_float(np.sqrt(1.0 - kept)),
    ),
    1.0,
  )


def flow_euler(scheduler: Scheduler, steps: int) -> Sampler:
  """Euler along the lines of a flow model, from time 1 to 0.

  Reference: Esser et al. 2024 (https://arxiv.org/abs/2403.03206).
  """
  total = scheduler.num_train_timesteps
  if steps < 1:
    raise UserError(f"config.sample.steps is {steps}; it must be at least 1.")
  time = schedules.flow_times(steps, timesteps=total, shift=scheduler.shift)
  lands = np.append(time[1:], 0.0)
  zero = 0.0 * time
  columns = total * time, 1.0 - time, time, 1.0 - lands, lands, *(zero,) * 3
  return Sampler(Step(*map(_float, columns)), 1.0)


SAMPLERS: dict[str, Callable[[Scheduler, int], Sampler]] = {
  "ddpm": ddpm,
  "ddim": ddim,
  "euler": euler,
  "euler_ancestral": euler_ancestral,
  "dpmpp_2m": dpmpp_2m,
  "lcm": lcm,
  "tcd": tcd,
  "flow_euler": flow_euler,
}


def _float(column: np.ndarray) -> np.ndarray:
  return np.asarray(column, np.float32)


def steps_between(
  visited: np.ndarray, asks: np.ndarray, lands: np.ndarray, eta: float
) -> Step:
  """DDIM's steps between two levels, each told by the signal's power."""
  fresh = (1.0 - lands) / (1.0 - asks) * (1.0 - asks / lands)
  variance = eta**2 * np.maximum(fresh, 0.0)
  left = np.sqrt(np.maximum(1.0 - lands - variance, 0.0))
  levels = np.sqrt(asks), np.sqrt(1.0 - asks), np.sqrt(lands)
  columns = visited, *levels, left, np.sqrt(variance), 0.0 * asks, 0.0 * asks
  return Step(*map(_float, columns))


def _visited(scheduler: Scheduler, steps: int) -> tuple[np.ndarray, np.ndarray]:
  whole = np.round(scheduler.spaced(steps)).astype(np.int64)
  return scheduler.alpha_bar(), whole


def _distilled(
  scheduler: Scheduler, steps: int
) -> tuple[np.ndarray, np.ndarray]:
  trained = scheduler.original_inference_steps
  if not 1 <= steps <= trained:
    raise UserError(
      f"config.sample.steps is {steps}; a few-step sampler takes at least 1 "
      f"and at most the {trained} that the model was distilled at."
    )
  total = scheduler.num_train_timesteps
  return scheduler.alpha_bar(), schedules.distilled(steps, total, trained)


def _euler(scheduler: Scheduler, steps: int, *, eta: float) -> Sampler:
  table = schedules.sigma_of(_above_zero(scheduler.alpha_bar()))
  visited = scheduler.spaced(steps)
  sigma = np.interp(visited, np.arange(len(table)), table)
  if scheduler.use_karras_sigmas and not eta:
    sigma = schedules.karras_sigmas(float(sigma[-1]), float(sigma[0]), steps)
    visited = schedules.timestep_of_sigma(sigma, table)
  levels = np.append(1.0 / (1.0 + sigma**2), 1.0)
  rows = steps_between(visited, levels[:-1], levels[1:], eta)
  # Leading never visits the last timestep, and starts from more noise than
  # the first it visits has.
  leading = scheduler.timestep_spacing == "leading"
  return Sampler(rows, 1.0 if leading else float(rows.sigma[0]))


def _above_zero(alpha_bar: np.ndarray) -> np.ndarray:
  """A last timestep of noise alone gets the signal that diffusers gives it."""
  return np.maximum(alpha_bar, 2.0**-24)


def _between(scheduler: Scheduler, steps: int) -> np.ndarray:
  """Timesteps of DPM-Solver++: one more would be visited, and is left out."""
  scheduler.spaced(steps)  # checks
  total = scheduler.num_train_timesteps
  if scheduler.timestep_spacing == "trailing":
    return schedules.trailing(steps, total)
  if scheduler.timestep_spacing == "linspace":
    return np.round(schedules.linspace(steps + 1, total))[:-1]
  return schedules.leading(steps + 1, total, scheduler.steps_offset)[:-1]
