"""The reference's log-probs: found on disk, or computed and written there."""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any

import jax
from jaxtyping import Float32
import numpy as np

from jaxpref import config, sharding
from jaxpref.data.batch import places
from jaxpref.data.prepared import Prepared
from jaxpref.data.steps import Steps
from jaxpref.fit.objectives import score_text
from jaxpref.fit.put import fetch, in_all
from jaxpref.fit.reference_pass import SAVE_SECONDS, batches_of, check_drift
from jaxpref.fit.reference_store import ReferenceStore
from jaxpref.models.build import Definition
from jaxpref.ops.attention import resolve_backend
from jaxpref.types import Params, TextBatch

_VERSION = 2  # of the values; change it when the same inputs give others


class CachedReference:
  """Log-probs of every response token of the data, in its order, in nats.

  Those that the store in the cache folder lacks are computed in the batches of
  the first epoch, so that the policy's first forward pass is packed and rounded
  alike: all before training (`fill`), or each as its step comes (`complete`).
  They are written every minute, and what was killed goes on. Those that the
  store has are tried: the first batch of them is computed anew.
  """

  def __init__(
    self,
    steps: Steps,
    definition: Definition,
    load: Callable[[], Params],
    *,
    weights: str,
    dtype: str,
    head_block: int,
    put: Callable[[Any], Any],
  ):
    """Finds what there is, and tries it.

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
    self.steps, self._load, self._put = steps, load, put
    whole = definition.base or definition
    platform = sharding.current_platform()
    self._store = ReferenceStore(
      config.cache_folder() / "reference",
      version=_VERSION,
      weights=weights,
      dtype=dtype,
      param_dtype=whole.storage,
      platform=platform,
      attention=resolve_backend(definition.attention, platform),
    )
    self.values, self._own = self._store.find(steps.data)
    # Computing takes all processes, and each may have a disk of its own. Of
    # responses that no step holds nothing needs to be known.
    self._known = in_all(self._own) | ~steps.kept
    self._score = _scorer(definition, head_block)
    self._unsaved, self._saved = list[int](), time.monotonic()
    # What the step before computed, if it is not fetched yet.
    self._pending: tuple[int, jax.Array] | None = None
    self._try(dtype)

  @property
  def is_whole(self) -> bool:
    return bool(self._known.all())

  def fill(self) -> np.ndarray:
    """Computes all that is missing; returns all values."""
    epoch = range(self.steps.steps_per_epoch)
    missing = [step for step in epoch if not self._knows(step)]
    for step, batch in batches_of(self.steps, missing):
      self._take(step, self._score(self._load(), self._put(batch)))
    self.write()
    return self.values

  def complete(self, step: int, batch: TextBatch) -> TextBatch:
    """The batch with its log-probs, which are there from now on.

    Those just computed stay on the devices, and are fetched when the next
    batch is asked for: by then the devices have a step to do.
    """
    with jax.transfer_guard("allow"):
      self._fetch()
      if self._knows(step):
        stored = self.steps.reference(step, self.values)
        return dataclasses.replace(batch, ref_token_logp=stored)
      computed = self._score(self._load(), self._put(batch))
    self._pending = step, computed
    return dataclasses.replace(batch, ref_token_logp=computed)

  def write(self) -> None:
    """Writes what is not on disk yet."""
    self._fetch()
    if self._unsaved:
      self._store.add(self.steps.data, np.array(self._unsaved), self.values)
    self._unsaved, self._saved = list[int](), time.monotonic()

  def _fetch(self) -> None:
    pending, self._pending = self._pending, None
    if pending:
      self._take(*pending)
      if self.is_whole:
        self._load = _no_more  # the weights may go

  def _take(self, step: int, logp: jax.Array) -> None:
    for number, values in self._by_response(step, logp).items():
      if not self._known[number]:
        self.values[_tokens(self.steps.data, number)] = values
        self._known[number] = True
      if not self._own[number]:
        self._unsaved.append(number)
        self._own[number] = True
    if time.monotonic() - self._saved > SAVE_SECONDS:
      self.write()

  def _by_response(
    self, step: int, logp: jax.Array
  ) -> dict[int, Float32[np.ndarray, " tokens"]]:
    """The values of each response of a step."""
    array = fetch(logp)
    return {
      p.response: array[p.micro, p.row, p.start : p.start + p.length]
      for p in places(self.steps.data, self.steps.packing(step)[0])
    }

  def _knows(self, step: int) -> bool:
    """Whether all values of a step are there."""
    examples = self.steps.examples(step)
    return bool(self._known[_responses(self.steps.data, examples)].all())

  def _try(self, dtype: str) -> None:
    """Computes the first batch of those that are there anew."""
    data, epoch = self.steps.data, range(self.steps.steps_per_epoch)
    step = next((step for step in epoch if self._knows(step)), None)
    if step is None:
      return
    logp = self._score(self._load(), self._put(self.steps[step]))
    anew = self._by_response(step, logp)
    stored = {number: self.values[_tokens(data, number)] for number in anew}
    differences = [stored[j] - anew[j] for j in anew]
    check_drift(
      float(np.mean(np.abs(np.concatenate(differences)))),
      dtype,
      self._store.folder,
      what="The reference log-probs",
      unit="nats a token",
    )


def _scorer(
  definition: Definition, head_block: int
) -> Callable[[Params, TextBatch], jax.Array]:
  @jax.jit
  def score(params: Params, batch: TextBatch) -> jax.Array:
    one = functools.partial(
      score_text, definition, params, head_block=head_block
    )
    return jax.lax.map(lambda part: one(batch=part), batch)

  return score


def _no_more() -> Params:
  raise AssertionError("all log-probs are there")


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
