"""scheduler_config.json: the noise that a model was trained with."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.ops import schedules


@dataclasses.dataclass(frozen=True)
class Scheduler:
  """Field names as in scheduler_config.json; the defaults are SDXL's."""

  num_train_timesteps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.012
  beta_schedule: str = "scaled_linear"
  prediction_type: str = "epsilon"
  rescale_betas_zero_snr: bool = False
  timestep_spacing: str = "leading"
  steps_offset: int = 1
  set_alpha_to_one: bool = False  # else DDIM ends at the first timestep's noise
  use_karras_sigmas: bool = False
  shift: float = 1.0  # of flow models
  original_inference_steps: int = 50  # that a few-step model was distilled at
  timestep_scaling: float = 10.0  # of a latent consistency model
  sampler: str = "euler"  # what the model's folder names

  def alpha_bar(self) -> schedules.Table:
    """The signal's power at each timestep of training."""
    alpha_bar = schedules.alpha_bar_of(self._betas())
    if self.rescale_betas_zero_snr:
      return schedules.with_zero_terminal_snr(alpha_bar)
    return alpha_bar

  def spaced(self, steps: int) -> np.ndarray:
    """The timesteps that `steps` steps visit, the noisiest first."""
    total = self.num_train_timesteps
    if not 1 <= steps <= total:
      raise UserError(
        f"config.sample.steps is {steps}; it must be at least 1 and at most "
        f"{total}, the model's timesteps."
      )
    if self.timestep_spacing == "trailing":
      return schedules.trailing(steps, total)
    if self.timestep_spacing == "linspace":
      return schedules.linspace(steps, total)
    visited = schedules.leading(steps, total, self.steps_offset)
    if visited[0] >= total:
      raise UserError(
        f"config.sample.steps is {steps}; with the model's steps_offset of "
        f"{self.steps_offset} the first timestep would be {visited[0]}, and "
        f"the last that it knows is {total - 1}. Take fewer steps."
      )
    return visited

  def _betas(self) -> schedules.Table:
    if self.beta_schedule == "squaredcos_cap_v2":
      return schedules.cosine_betas(self.num_train_timesteps)
    make = {
      "linear": schedules.linear_betas,
      "scaled_linear": schedules.scaled_linear_betas,
    }[self.beta_schedule]
    return make(self.beta_start, self.beta_end, self.num_train_timesteps)


def read_scheduler(folder: pathlib.Path) -> Scheduler:
  """The scheduler of a diffusers folder.

  Raises UserError where the file is missing or asks for what is not supported.
  """
  path = folder / "scheduler" / "scheduler_config.json"
  try:
    given = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"there is no {path}. Give a folder that diffusers saved, which has "
      "model_index.json and a folder for each part."
    ) from None
  except ValueError as error:
    raise UserError(f"{path} is not JSON: {error}.") from error
  return scheduler_from(given, source=str(path))


def scheduler_from(given: Mapping[str, Any], *, source: str) -> Scheduler:
  """A Scheduler of the fields of a scheduler_config.json.

  What the file leaves out has the value that diffusers gives it.
  """
  name = given.get("_class_name", "EulerDiscreteScheduler")
  if name not in _CLASSES:
    raise UserError(
      f"{source}: the scheduler {name!r} is not supported. "
      f"{nearest(name, _CLASSES)}"
    )
  for key, allowed in _ALLOWED.items():
    if key in given and given[key] not in allowed:
      raise UserError(
        f"{source}: {key} is {given[key]!r}; supported here: "
        f"{', '.join(map(repr, allowed))}."
      )
  if given.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
    given = {**given, "prediction_type": "flow"}
  fields = {f.name for f in dataclasses.fields(Scheduler)} - {"sampler"}
  known = {key: given[key] for key in fields & given.keys()}
  return Scheduler(**{**_DIFFUSERS, **_CLASSES[name], **known})


# What diffusers' classes take a missing field for, and where each differs.
_DIFFUSERS: dict[str, Any] = {
  "beta_start": 0.0001,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "timestep_spacing": "leading",
  "steps_offset": 0,
  "set_alpha_to_one": True,
}
_LATENT = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
}
_LINSPACE = {"timestep_spacing": "linspace"}
_CLASSES: dict[str, dict[str, Any]] = {
  "DDPMScheduler": {"sampler": "ddpm"},
  "DDIMScheduler": {"sampler": "ddim"},
  "EulerDiscreteScheduler": {"sampler": "euler", **_LINSPACE},
  "EulerAncestralDiscreteScheduler": {
    "sampler": "euler_ancestral",
    **_LINSPACE,
  },
  "DPMSolverMultistepScheduler": {"sampler": "dpmpp_2m", **_LINSPACE},
  "LCMScheduler": {"sampler": "lcm", **_LATENT},
  "TCDScheduler": {"sampler": "tcd", **_LATENT},
  "FlowMatchEulerDiscreteScheduler": {"sampler": "flow_euler"},
}
# Settings that would change a sample and are not built, and choices.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
  "prediction_type": ("epsilon", "v_prediction", "sample", "flow"),
  "timestep_spacing": ("leading", "trailing", "linspace"),
  "trained_betas": (None,),
  "clip_sample": (False,),
  "thresholding": (False,),
  "timestep_type": ("discrete",),
  "interpolation_type": ("linear",),
  "final_sigmas_type": ("zero",),
  "use_exponential_sigmas": (False,),
  "use_beta_sigmas": (False,),
  "use_lu_lambdas": (False,),
  "use_flow_sigmas": (False,),
  "use_dynamic_shifting": (False,),
  "shift_terminal": (None,),
  "stochastic_sampling": (False,),
  "invert_sigmas": (False,),
  "variance_type": ("fixed_small", None),
  "algorithm_type": ("dpmsolver++",),
  "solver_type": ("midpoint",),
  "solver_order": (2,),
}
