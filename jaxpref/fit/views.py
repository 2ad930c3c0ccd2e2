"""What losses ask for, by the names of their vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxpref import losses
from jaxpref.types import TextBatch


class Views:
  """Sums, means and ratios of token log-probs, by slot and by side of a pair.

  `views["chosen_logratio"]` is what a loss gets for its argument of that name.
  """

  damp: float = 0.0  # see `loss.DAMP`

  def __init__(
    self,
    batch: TextBatch,
    token_logp: Float32[Array, "rows responses"],
    ref_token_logp: Float32[Array, "rows responses"] | None,
    unit: losses.Unit,
  ) -> None:
    self.batch: Any = batch  # of text here; others have slots as well
    self.unit = unit
    self.token_logp, self._ref = token_logp, ref_token_logp

  def __getitem__(self, name: str) -> Array:
    if name == "token_logp":
      return self.token_logp
    if name == "ref_token_logp":
      return self.ref_token_logp
    if name == "valid":
      return self.valid
    if name == "preference":
      return self.batch.comparisons.preference
    if name == "desirable":
      return self.batch.slots.label == 1
    if name == "scores":
      return self.batch.slots.score[self.batch.lists.slot]
    if name == "values":
      return self["logratio"]
    if name == "kl":
      return losses.kto_kl(self.slot_values("logratio"), self.mismatched)
    side, _, what = name.partition("_")
    pairs = self.batch.comparisons
    if side == "chosen":
      return self.slot_values(what)[pairs.better]
    if side == "rejected":
      return self._damped(self.slot_values(what)[pairs.worse])
    found = self.slot_values(name)
    return found[self.batch.lists.slot] if self.unit == "list" else found

  @property
  def has_reference(self) -> bool:
    return self._ref is not None

  @property
  def ref_token_logp(self) -> Float32[Array, "rows responses"]:
    assert self._ref is not None  # `check_mode` refuses before
    return self._ref

  @property
  def mismatched(self) -> Bool[Array, "slots"]:
    return self.batch.slots.valid & self.batch.slots.mismatched

  @property
  def valid(self) -> Array:
    """Which entries of the loss's arrays are no padding."""
    slots = self.batch.slots
    if self.unit == "pair":
      return self.batch.comparisons.valid
    if self.unit == "list":
      return self.batch.lists.valid
    if self.unit == "response":
      return slots.valid & (slots.label >= 0)
    return self.batch.slot < slots.valid.shape[0]

  @property
  def told(self) -> Bool[Array, "pairs"]:
    """Which comparisons have a better response, and are no tie."""
    pairs = self.batch.comparisons
    return pairs.valid & (pairs.preference != 0.5)

  @property
  def units(self) -> Array:
    """Which values of the loss are no padding; a list has two items or more."""
    valid = self.valid
    return jnp.sum(valid, axis=-1) > 1 if self.unit == "list" else valid

  @property
  def both_fell(self) -> Bool[Array, "pairs"]:
    """Pairs of which both are less likely than under the reference."""
    gain, pairs = self.slot_values("logratio"), self.batch.comparisons
    return (gain[pairs.better] < 0.0) & (gain[pairs.worse] < 0.0)

  def _damped(self, x: Array) -> Array:
    """The same values, of which some pass on less of the gradient."""
    if not self.damp:
      return x
    still = jax.lax.stop_gradient(x)
    fell = self.both_fell & (self.batch.comparisons.preference >= 0.5)
    return still + jnp.where(fell, 1.0 - self.damp, 1.0) * (x - still)

  def swapped(self, name: str) -> Array:
    """The same of the other response of each pair."""
    side, _, what = name.partition("_")
    other = {"chosen": "rejected", "rejected": "chosen"}
    return self[f"{other[side]}_{what}" if side in other else name]

  def slot_values(self, what: str) -> Float32[Array, "slots"]:
    """logp, logratio, or their means over the tokens of each response."""
    if what.startswith("mean_"):
      length = self._slot_sum(jnp.ones_like(self.token_logp))
      total = self.slot_values(what.removeprefix("mean_"))
      return total / jnp.maximum(length, 1.0)
    if what == "logp":
      return self._slot_sum(self.token_logp)
    # Ratios a token, then the sum: the difference of two sums would round ten
    # times as much.
    return self._slot_sum(self.token_logp - self.ref_token_logp)

  def _slot_sum(self, x: Array) -> Float32[Array, "slots"]:
    count = self.batch.slots.valid.shape[0]
    sums = jax.ops.segment_sum(
      x.ravel(), self.batch.slot.ravel(), num_segments=count + 1
    )
    return sums[:count]  # the last one gathers the padding
