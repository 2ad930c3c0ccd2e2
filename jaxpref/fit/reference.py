"""The reference: a live copy, or log-probs cached on disk, one a token."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from jaxpref import config
from jaxpref.data.batch import places
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.objectives import find_loss, needs_reference, score_text
from jaxpref.models import huggingface
from jaxpref.models.build import Definition
from jaxpref.models.source import Source, compute_dtype
from jaxpref.types import Params

_VERSION = 1  # of the values; change it when the same inputs give others


def reference_mode(settings: config.Config) -> str:
  """What `reference.mode` comes to for this loss.

  'auto' caches where the run sees every example at least once, and else keeps
  a live copy, which is then the cheaper.
  """
  mode = settings.reference.mode
  if not needs_reference(find_loss(settings.loss)):
    return "none"
  if mode == "none":
    raise UserError(
      f"config.reference.mode is 'none', and the loss {settings.loss.name!r} "
      "compares with a reference. Set it to auto, live or cached."
    )
  return mode


def open_reference(
  mode: str,
  settings: config.Config,
  policy: Source,
  places: Any,
  steps: Steps,
  test_steps: Steps | None,
  put: Callable[[Any], Any],
) -> Mapping[str, Params]:
  """Frozen parameters by role; cached log-probs are put into the steps."""
  if mode == "none":
    return {}
  path = settings.reference.path or policy.path
  source = dataclasses.replace(policy, path=path)
  if path != policy.path:
    _check_same_shape(source, huggingface.read_config(path))
    huggingface.check_params(path, source.definition)
  if mode == "auto":
    once = len(steps) >= steps.steps_per_epoch
    mode = "cached" if once else "live"
  if mode == "live":
    return {"reference": source.load(places)}
  load = functools.cache(functools.partial(source.load, places))
  for part in filter(None, (steps, test_steps)):
    part.ref_token_logp = reference_logps(
      part,
      source.definition,
      load,
      weights=source.identity,
      dtype=compute_dtype(settings.model),
      head_block=settings.model.head_block,
      put=put,
    )
  return {}


def reference_logps(
  steps: Steps,
  definition: Definition,
  load: Callable[[], Params],
  *,
  weights: str,
  dtype: str,
  head_block: int,
  put: Callable[[Any], Any],
) -> np.ndarray:
  """Log-prob of every response token of the data, in its order, in nats.

  The data are walked in the batches of the first epoch, so that the policy's
  first forward pass is packed and rounded alike. The values are kept in the
  cache folder under a name made of all that they depend on.

  Args:
    steps: the step batches.
    definition: the model.
    load: gets the reference's weights, if they are needed.
    weights: a digest of those weights.
    dtype: of the model's activations.
    head_block: see `token_logp`.
    put: moves a batch to the devices.
  """
  key = _digest(
    version=_VERSION,
    weights=weights,
    data=steps.data.fingerprint,
    dtype=dtype,
    backend=jax.default_backend(),
  )
  path = config.cache_folder() / "reference" / f"{key}.safetensors"
  # Computing takes all processes, and each may have a disk of its own.
  if _all_have(path):
    return load_file(path)["token_logp"]

  @jax.jit
  def score(params: Params, batch: Any) -> jax.Array:
    one = functools.partial(
      score_text, definition, params, head_block=head_block
    )
    return jax.lax.map(lambda part: one(batch=part), batch)

  params = load()
  values = np.zeros(int(np.sum(steps.data.response_lengths)), np.float32)
  for step in tqdm(range(steps.steps_per_epoch), desc="reference", unit="step"):
    logp = _gather(score(params, put(steps[step])))
    for place in places(steps.data, steps.packing(step)[0]):
      first = steps.data.first_token[place.response]
      values[first : first + place.length] = logp[place.micro, place.row][
        place.start : place.start + place.length
      ]
  if not path.exists():
    _write(path, values)
  return values


def _all_have(path: pathlib.Path) -> bool:
  if jax.process_count() == 1:
    return path.exists()
  return bool(np.all(multihost_utils.process_allgather(path.exists())))


def _check_same_shape(source: Source, other: Any) -> None:
  if other != source.definition.config:
    raise UserError(
      f"config.reference.path {source.path} holds a model of another shape "
      "than the policy's. Give a folder with the same config.json."
    )


def _digest(**parts: Any) -> str:
  text = json.dumps(parts, sort_keys=True).encode()
  return hashlib.blake2b(text, digest_size=16).hexdigest()


def _gather(x: jax.Array) -> np.ndarray:
  if jax.process_count() == 1:
    return jax.device_get(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _write(path: pathlib.Path, values: np.ndarray) -> None:
  """Writes a whole file or none."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
  os.close(handle)
  save_file({"token_logp": values}, temporary)
  os.replace(temporary, path)
