"""The reference's denoising errors: found on disk, or computed there once.

An error belongs to an image, its timestep and its noise. With
`diffusion.noise_bank` a prompt has that many of the two and meets them again
and again, so that a pass over the data for each is all that the reference
computes.
"""

from collections.abc import Callable, Mapping
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
from jaxtyping import Float32
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxpref import config
from jaxpref.data.image_steps import ImageSteps
from jaxpref.files import replacing
from jaxpref.fit.objectives import Roles
from jaxpref.fit.put import fetch, in_all
from jaxpref.fit.reference_pass import SAVE_SECONDS, batches_of, check_drift
from jaxpref.types import Pictures

_VERSION = 1  # of the keys of noise and timestep, and of what is computed


def cached_errors(
  steps: ImageSteps,
  score: Callable[[Roles, Any], Float32[jax.Array, "micros slots"]],
  load: Callable[[], Roles],
  put: Callable[[Any], Any],
  *,
  dtype: str,
  depends: Mapping[str, Any],
) -> Float32[np.ndarray, "draws responses"]:
  """The reference's errors of every draw that the steps will ask for.

  They are computed in the batches of the first epochs and written every
  minute; what was killed goes on. Of those that are there the first batch is
  computed anew. All processes must call it.

  Args:
    steps: the step batches.
    score: the reference's errors of a step.
    load: gets the frozen weights that a live reference has, if needed.
    put: moves a batch to the devices.
    dtype: of the model's activations.
    depends: what the errors depend on beside the encoded images and captions.

  Returns: errors, NaN where no step asks.

  Raises UserError where the model does not give what is there.
  """
  shape = steps.noise_bank, len(steps.data.response_lengths)
  told = {
    "version": _VERSION,
    "draws": steps.noise_bank,
    "data": steps.data.fingerprint,
    "dtype": dtype,
    **depends,
  }
  file = _file(told)
  values = _read(file, shape)
  count = min(len(steps), steps.noise_bank * steps.steps_per_epoch)
  places = [_places(steps, step) for step in range(count)]
  # Each process may have a disk of its own, and computing takes all of them.
  here = np.array([np.isfinite(values[each]).all() for each in places])
  known = in_all(here)

  def compute(step: int, batch: Pictures) -> Float32[np.ndarray, " n"]:
    errors = fetch(score(load(), put(batch)))
    micro, slot, _ = np.array(list(steps.places(step))).T
    return errors[micro, slot]

  if known.any():
    step = int(np.argmax(known))
    stored, anew = values[places[step]], compute(step, steps[step])
    check_drift(
      float(np.mean(np.abs(stored - anew)) / np.mean(np.abs(anew))),
      dtype,
      file,
      what="The reference's errors",
      unit="of their size",
    )
  missing = [step for step in range(count) if not known[step]]
  saved = time.monotonic()
  for step, batch in batches_of(steps, missing):
    values[places[step]] = compute(step, batch)
    if time.monotonic() - saved > SAVE_SECONDS:
      _write(file, values, told)
      saved = time.monotonic()
  if missing:
    _write(file, values, told)
  return values


def _places(steps: ImageSteps, step: int) -> tuple[Any, Any]:
  """Where the values of a step stand among all: its draw, and the responses."""
  return steps.draw(step), np.array([j for *_, j in steps.places(step)])


def _file(told: Mapping[str, Any]) -> pathlib.Path:
  digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
  return config.cache_folder() / "errors" / f"{digest[:32]}.safetensors"


def _read(
  file: pathlib.Path, shape: tuple[int, int]
) -> Float32[np.ndarray, "draws responses"]:
  """What is there; a damaged file is as if it were not."""
  try:
    found = load_file(file)["error"]
  except (OSError, KeyError, SafetensorError):
    return np.full(shape, np.nan, np.float32)
  return found


def _write(
  file: pathlib.Path, values: np.ndarray, told: Mapping[str, Any]
) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  with replacing(file) as partial:
    save_file({"error": values}, partial, {"depends": json.dumps(told)})
