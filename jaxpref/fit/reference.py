"""The reference: a live copy, or log-probs cached on disk, one a token."""

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

from jaxpref import config
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
from jaxpref.models.source import Source, compute_dtype
from jaxpref.types import Params, TextBatch

# A model and its copy may differ in these: no log-prob depends on them.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
# Nats a token, on average over a batch. Packed in another way, 1e-8 was seen in
# float32 and 5e-7 in bfloat16 on CPU; accelerators round more in bfloat16.
_DRIFT = {"float32": 1e-4, "bfloat16": 0.02}
_SAVE_SECONDS = 60.0
_VERSION = 2  # of the values; change it when the same inputs give others


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
  store = ReferenceStore(
    config.cache_folder() / "reference",
    version=_VERSION,
    weights=weights,
    dtype=dtype,
    param_dtype=str(jax.tree.leaves(definition.shapes)[0].dtype),
    backend=jax.default_backend(),
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
