"""The reference: a live copy, or log-probs cached on disk, one a token."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from jaxpref import config
from jaxpref.data.batch import places
from jaxpref.data.prepared import Prepared
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.fit.loss import find_loss, needs_reference
from jaxpref.fit.objectives import score_text
from jaxpref.models import huggingface
from jaxpref.models.build import Definition
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.source import Source, compute_dtype
from jaxpref.types import Params

# A model and its copy may differ in these: no log-prob depends on them.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
_VERSION = 1  # of the values; change it when the same inputs give others


def check_mode(settings: config.Config) -> None:
  """Raises UserError for a loss without the reference it needs."""
  needed = needs_reference(find_loss(settings.loss))
  if needed and settings.reference.mode == "none":
    raise UserError(
      f"config.reference.mode is 'none', and the loss {settings.loss.name!r} "
      "compares with a reference. Set it to auto, live or cached."
    )


def with_mode(settings: config.Config, steps: Steps) -> config.Config:
  """The config with what `reference.mode` comes to.

  'auto' caches where the run sees every example at least once, and else keeps
  a live copy, which is then the cheaper.
  """
  mode = settings.reference.mode
  if not needs_reference(find_loss(settings.loss)):
    mode = "none"
  elif mode == "auto":
    once = len(steps) >= steps.steps_per_epoch
    mode = "cached" if once else "live"
  reference = dataclasses.replace(settings.reference, mode=mode)
  return dataclasses.replace(settings, reference=reference)


def open_reference(
  settings: config.Config,
  policy: Source,
  shardings: Any,
  steps: Steps,
  test_steps: Steps | None,
  put: Callable[[Any], Any],
) -> Mapping[str, Params]:
  """Frozen parameters by role; cached log-probs are put into the steps."""
  mode = settings.reference.mode
  if mode == "none":
    return {}
  path = settings.reference.path or policy.path
  source = dataclasses.replace(policy, path=path)
  if path != policy.path:
    _check_same_shape(source, huggingface.read_config(path))
    huggingface.check_params(path, source.definition)
  if mode == "live":
    return {"reference": source.load(shardings)}
  load = functools.cache(functools.partial(source.load, shardings))
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
    param_dtype=str(jax.tree.leaves(definition.shapes)[0].dtype),
    backend=jax.default_backend(),
  )
  path = config.cache_folder() / "reference" / f"{key}.safetensors"
  found = _read(path, steps.data)
  # Computing takes all processes, and each may have a disk of its own.
  if _all(found is not None):
    return found

  @jax.jit
  def score(params: Params, batch: Any) -> jax.Array:
    one = functools.partial(
      score_text, definition, params, head_block=head_block
    )
    return jax.lax.map(lambda part: one(batch=part), batch)

  params = load()
  values = np.zeros(steps.data.first_token[-1], np.float32)
  count = steps.steps_per_epoch
  batches = tqdm(
    steps.loader(0, count), total=count, desc="reference", unit="step"
  )
  for step, batch in enumerate(batches):
    logp = _gather(score(params, put(batch)))
    for place in places(steps.data, steps.packing(step)[0]):
      first = steps.data.first_token[place.response]
      values[first : first + place.length] = logp[place.micro, place.row][
        place.start : place.start + place.length
      ]
  if found is None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
      save_file({"token_logp": values}, partial)
  return values


def _read(path: pathlib.Path, data: Prepared) -> Any:
  """The values in the cache; None where there are none that can be read."""
  try:
    values = load_file(path)["token_logp"]
  except (OSError, KeyError, SafetensorError):
    return None
  return values if len(values) == data.first_token[-1] else None


def _all(here: bool) -> bool:
  """Whether it holds in every process."""
  if jax.process_count() == 1:
    return here
  return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def _check_same_shape(source: Source, other: LlamaConfig) -> None:
  same = dataclasses.replace(
    other, **{name: getattr(source.definition.config, name) for name in _IDS}
  )
  if same != source.definition.config:
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
