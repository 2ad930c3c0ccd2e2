"""The text objective: from packed rows to the terms of a loss.

An objective is a function (trainable, frozen, state, batch, key) ->
(terms, state, metrics). `trainable` and `frozen` hold parameters by role,
`terms` are summed over micro-batches and divided by their counts, `metrics`
likewise; `state` is what a method keeps between steps.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxpref import config, losses
from jaxpref.config import nearest
from jaxpref.errors import UserError
from jaxpref.models.build import Definition, bind
from jaxpref.ops.attention import packed_attention
from jaxpref.ops.logprob import token_logp
from jaxpref.types import Params, Term, TextBatch, sum_valid

Terms = dict[str, Term]
Objective = Callable[
  [Mapping[str, Params], Mapping[str, Params], Any, Any, jax.Array],
  tuple[Terms, Any, Terms],
]


def find_loss(settings: config.Loss) -> Callable[..., Any]:
  """The loss of `config.loss`, its options checked against its signature.

  Raises UserError for an unknown name or option, or a missing one.
  """
  try:
    loss = losses.get(settings.name)
  except ValueError as error:
    raise UserError(f"config.loss.name: {error}.") from None
  keywords = {
    name: parameter
    for name, parameter in inspect.signature(loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  for name, value in settings.options.items():
    if name not in keywords:
      raise UserError(
        f"config.loss.{name} is not an option of the loss {settings.name!r}. "
        f"{nearest(name, keywords) if keywords else 'It has none.'}"
      )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise UserError(f"config.loss.{name} is {value!r}; it must be a number.")
  for name, parameter in keywords.items():
    if parameter.default is parameter.empty and name not in settings.options:
      raise UserError(
        f"The loss {settings.name!r} needs config.loss.{name}, a number."
      )
  try:
    loss(*(jnp.zeros(1) for _ in _inputs(loss)), **settings.options)
  except (ValueError, ArithmeticError) as error:
    raise UserError(
      f"config.loss: {settings.name!r} does not take these values: {error}."
    ) from error
  return loss


def compares(loss: Callable[..., Any]) -> bool:
  """Whether the loss is one of preference pairs."""
  return any(name.startswith("chosen_") for name in _inputs(loss))


def needs_reference(loss: Callable[..., Any]) -> bool:
  """Whether the loss compares the policy with a reference."""
  return any("logratio" in name or "ref_" in name for name in _inputs(loss))


def score_text(
  definition: Definition, params: Params, batch: TextBatch, head_block: int
) -> Float32[Array, "rows responses"]:
  """Log-probability of every response token of packed rows, in nats."""
  model = bind(definition, params)
  attend = packed_attention(batch.expand, batch.collapse)
  hidden, _ = model(batch.tokens, batch.position, attend)
  # The head sees only the states that predict a response token.
  hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
  return token_logp(hidden, model.head_kernel(), batch.target, block=head_block)


def text_objective(
  definition: Definition, settings: config.Loss, *, head_block: int
) -> Objective:
  """The objective of `settings.name` on packed text.

  Roles: `policy` (trainable) and, for losses that need one, `reference`
  (frozen) unless the batch carries cached reference log-probs.
  """
  loss = find_loss(settings)
  beta = settings.options.get("beta", 1.0)

  def objective(
    trainable: Mapping[str, Params],
    frozen: Mapping[str, Params],
    state: Any,
    batch: TextBatch,
    key: jax.Array,
  ) -> tuple[Terms, Any, Terms]:
    del key  # text draws nothing
    logp = score_text(definition, trainable["policy"], batch, head_block)
    ref_logp = batch.ref_token_logp
    if ref_logp is None and "reference" in frozen:
      ref_logp = jax.lax.stop_gradient(
        score_text(definition, frozen["reference"], batch, head_block)
      )
    views = _Views(batch, logp, ref_logp)
    if not compares(loss):
      values = loss(
        *(views[name] for name in _inputs(loss)), **settings.options
      )
      term = sum_valid(values, batch.slot < batch.slots.valid.shape[0])
      return {"loss": term}, state, {"loss": term}
    term = _pair_term(loss, settings.options, views)
    return {"loss": term}, state, {"loss": term, **_pair_metrics(views, beta)}

  return objective


class _Views:
  """What losses ask for, by the names of their vocabulary."""

  def __init__(
    self, batch: TextBatch, logp: Array, ref_logp: Array | None
  ) -> None:
    self.batch, self.token_logp = batch, logp
    self.ref_token_logp: Any = ref_logp  # None where no loss asks for it

  def __getitem__(self, name: str) -> Array:
    if name in ("token_logp", "ref_token_logp"):
      return getattr(self, name)
    side, what = name.split("_", 1)
    pairs = self.batch.comparisons
    slots = pairs.better if side == "chosen" else pairs.worse
    return self._slot_values(what)[slots]

  def swapped(self, name: str) -> Array:
    """The same of the other response of each pair."""
    side, what = name.split("_", 1)
    other = "rejected" if side == "chosen" else "chosen"
    return self[f"{other}_{what}"]

  def _slot_values(self, what: str) -> Float32[Array, "slots"]:
    if what.startswith("mean_"):
      length = self._slot_sum(jnp.ones_like(self.token_logp))
      total = self._slot_values(what.removeprefix("mean_"))
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


def _pair_term(
  loss: Callable[..., Any], options: Mapping[str, Any], views: _Views
) -> Term:
  names, pairs = _inputs(loss), views.batch.comparisons
  forward = loss(*(views[name] for name in names), **options)
  backward = loss(*(views.swapped(name) for name in names), **options)
  soft = pairs.preference * forward + (1.0 - pairs.preference) * backward
  return sum_valid(soft, pairs.valid, pairs.weight)


def _pair_metrics(views: _Views, beta: float) -> Terms:
  def mean(x: Array) -> Term:
    values = x.astype(jnp.float32)
    return sum_valid(values, views.batch.comparisons.valid)

  chosen, rejected = views["chosen_logp"], views["rejected_logp"]
  metrics = {
    "logps/chosen": mean(chosen),
    "logps/rejected": mean(rejected),
    "logps/accuracies": mean(chosen > rejected),
  }
  if views.ref_token_logp is not None:
    chosen = beta * views["chosen_logratio"]
    rejected = beta * views["rejected_logratio"]
    metrics |= {
      "rewards/chosen": mean(chosen),
      "rewards/rejected": mean(rejected),
      "rewards/margins": mean(chosen - rejected),
      "rewards/accuracies": mean(chosen > rejected),
      "rewards/ties": mean(chosen == rejected),
    }
  return jax.lax.stop_gradient(metrics)


def _inputs(loss: Callable[..., Any]) -> list[str]:
  parameters = inspect.signature(loss).parameters.values()
  return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
