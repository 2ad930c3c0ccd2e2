"""The reference: cached log-probs, a live copy, or the base of an adapter."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from tqdm import tqdm

from jaxpref import config, sharding
from jaxpref.data.batch import places
from jaxpref.data.prepared import Prepared
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.loss import find_loss, needs_reference
from jaxpref.fit.objectives import score_text
from jaxpref.fit.reference_store import ReferenceStore
from jaxpref.models import huggingface
from jaxpref.models.build import Definition
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.lora import overlay
from jaxpref.models.source import Source, compute_dtype
from jaxpref.ops.attention import resolve_backend
from jaxpref.types import Params, TextBatch

# A model and its copy may differ in these: no log-prob depends on them.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
# Nats a token, on average over a batch. Packed in another way, 1e-8 was seen in
# float32 and 5e-7 in bfloat16 on CPU; accelerators round more in bfloat16.
_DRIFT = {"float32": 1e-4, "bfloat16": 0.02}
_SAVE_SECONDS = 60.0
_VERSION = 2  # of the values; change it when the same inputs give others


def check_mode(settings: config.Config) -> None:
  """Raises UserError for a reference that cannot be or is not enough."""
  if settings.reference.mode == "base":
    _check_base(settings)
  needed = needs_reference(find_loss(settings.loss))
  if needed and settings.reference.mode == "none":
    raise UserError(
      f"config.reference.mode is 'none', and the loss {settings.loss.name!r} "
      "compares with a reference. Set it to auto, live, cached or base."
    )


def with_mode(settings: config.Config, steps: Steps) -> config.Config:
  """The config with what `reference.mode` comes to.

  'auto' caches where the run sees every example at least once. Else to compute
  it as it goes is the cheaper: by the base under a new adapter, which takes no
  memory, or by a live copy.
  """
  mode, lora = settings.reference.mode, settings.model.lora
  begins_as_base = lora.rank > 0 and not lora.path
  if not needs_reference(find_loss(settings.loss)):
    mode = "none"
  elif mode == "auto" and len(steps) >= steps.steps_per_epoch:
    mode = "cached"
  elif mode == "auto":
    shares = begins_as_base and not settings.reference.path
    mode = "base" if shares else "live"
  reference = dataclasses.replace(settings.reference, mode=mode)
  return dataclasses.replace(settings, reference=reference)


def open_reference(
  settings: config.Config,
  policy: Source,
  mesh: jax.sharding.Mesh,
  steps: Steps,
  test_steps: Steps | None,
  put: Callable[[Any], Any],
) -> Mapping[str, Params]:
  """Frozen parameters by role; cached log-probs are put into the steps.

  Under an adapter `base` is among them, and it is held once: the reference
  shares it, whatever the mode, unless it is another model.
  """
  base = policy.base
  frozen = {"base": _load(base, mesh)} if base else {}
  mode, path = settings.reference.mode, settings.reference.path
  if mode in ("none", "base"):
    return frozen
  source = base or policy
  if path and path != policy.path:
    source = dataclasses.replace(source, path=path)
    _check_same_shape(source, huggingface.read_config(path))
    huggingface.check_params(path, source.definition)
  elif settings.model.lora.path and not path:
    source = policy  # the base with the adapter as it was
  if mode == "live" and source is base:
    return frozen
  if mode == "live":
    role = "reference_factors" if source.base else "reference"
    return {**frozen, role: _load(source, mesh)}

  @functools.cache
  def load() -> Params:
    if source is base:
      return frozen["base"]
    own = _load(source, mesh)
    return overlay(frozen["base"], own) if source.base else own

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
  return frozen


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

  Those that the store in the cache folder lacks are computed in the batches of
  the first epoch, so that the policy's first forward pass is packed and rounded
  alike. They are written every minute, and a pass that was killed goes on.
  Those that it has are tried: the first batch of them is computed anew.

  Args:
    steps: the step batches.
    definition: the model.
    load: gets the reference's weights, if they are needed.
    weights: a digest of those weights.
    dtype: of the model's activations.
    head_block: see `token_logp`.
    put: moves a batch to the devices.

  Raises UserError where the model does not give what the store holds.
  """
  data = steps.data
  whole = definition.base or definition
  platform = sharding.current_platform()
  store = ReferenceStore(
    config.cache_folder() / "reference",
    version=_VERSION,
    weights=weights,
    dtype=dtype,
    param_dtype=str(jax.tree.leaves(whole.shapes)[0].dtype),
    platform=platform,
    attention=resolve_backend(definition.attention, platform),
  )
  values, own = store.find(data)
  # Computing takes all processes, and each may have a disk of its own.
  known = _all(own)

  @jax.jit
  def score(params: Params, batch: Any) -> jax.Array:
    one = functools.partial(
      score_text, definition, params, head_block=head_block
    )
    return jax.lax.map(lambda part: one(batch=part), batch)

  def computed(step: int, batch: TextBatch) -> dict[int, np.ndarray]:
    """The values of each response of a step."""
    logp = _gather(score(load(), put(batch)))
    return {
      p.response: logp[p.micro, p.row, p.start : p.start + p.length]
      for p in places(data, steps.packing(step)[0])
    }

  complete = [
    bool(known[_responses(data, steps.examples(step))].all())
    for step in range(steps.steps_per_epoch)
  ]
  if any(complete):
    step = complete.index(True)
    anew = computed(step, steps[step])
    stored = {j: values[_tokens(data, j)] for j in anew}
    _check_drift(stored, anew, dtype, store.folder)
  missing = [step for step, there in enumerate(complete) if not there]
  batches = tqdm(
    steps.loader(missing),
    total=len(missing),
    desc="reference",
    unit="step",
    disable=not missing,
  )
  saved, unsaved = time.monotonic(), list[int]()
  for step, batch in zip(missing, batches, strict=True):
    for number, logp in computed(step, batch).items():
      if not known[number]:
        values[_tokens(data, number)] = logp
      if not own[number]:
        unsaved.append(number)
    last = step == missing[-1]
    if unsaved and (last or time.monotonic() - saved > _SAVE_SECONDS):
      store.add(data, np.array(unsaved), values)
      saved, unsaved = time.monotonic(), list[int]()
  return values


def _responses(data: Prepared, examples: np.ndarray) -> np.ndarray:
  """The numbers of all responses of these examples."""
  spans = zip(
    data.first_response[examples],
    data.first_response[examples + 1],
    strict=True,
  )
  return np.concatenate([np.arange(*span) for span in spans])


def _tokens(data: Prepared, response: int) -> slice:
  """Where a response's tokens stand among all response tokens."""
  first = data.first_token[response]
  return slice(first, first + data.response_lengths[response])


def _check_drift(
  stored: Mapping[int, np.ndarray],
  computed: Mapping[int, np.ndarray],
  dtype: str,
  folder: pathlib.Path,
) -> None:
  differences = [stored[j] - computed[j] for j in computed]
  apart = np.mean(np.abs(np.concatenate(differences)))
  if jax.process_count() > 1:  # each may have found others; all stop, or none
    apart = np.max(multihost_utils.process_allgather(apart))
  if not apart <= _DRIFT[dtype]:
    raise UserError(
      f"The reference log-probs in {folder} are {apart:.2g} nats a token off "
      f"what the reference gives now ({_DRIFT[dtype]:g} is the most that "
      "rounding explains): they were written by another version or machine, "
      "or damaged. Delete that folder to have them computed anew, or set "
      "config.reference.mode=live."
    )


def _all(here: np.ndarray) -> np.ndarray:
  """Which entries hold in every process."""
  if jax.process_count() == 1:
    return here
  return np.all(multihost_utils.process_allgather(here), axis=0)


def _check_base(settings: config.Config) -> None:
  if not settings.model.lora.rank:
    raise UserError(
      "config.reference.mode is 'base', the model below an adapter, and there "
      "is no adapter. Set config.model.lora.rank, or the mode to auto, live or "
      "cached."
    )
  if settings.reference.path:
    raise UserError(
      "config.reference.mode is 'base', the model below the adapter, and "
      f"config.reference.path names {settings.reference.path}. Set the mode to "
      "live or cached, or the path to ''."
    )


def _load(source: Source, mesh: jax.sharding.Mesh) -> Params:
  shapes, axes = source.definition.shapes, source.definition.axes
  return source.load(sharding.param_shardings(mesh, shapes, axes))


def _check_same_shape(source: Source, other: LlamaConfig) -> None:
  same = dataclasses.replace(
    other, **{name: getattr(source.definition.config, name) for name in _IDS}
  )
  if same != source.definition.config:
    raise UserError(
      f"config.reference.path {source.path} holds a model of another shape "
      "than the policy's. Give a folder with the same config.json."
    )


def _gather(x: jax.Array) -> np.ndarray:
  if jax.process_count() == 1:
    return jax.device_get(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
