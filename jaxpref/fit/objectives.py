"""The text objective: from packed rows to the terms of a loss.

An objective is a function (trainable, frozen, state, batch, key) ->
(terms, state, metrics). `trainable` and `frozen` hold parameters by role,
`terms` are summed over micro-batches and divided by their counts, `metrics`
likewise; `state` is what a method keeps between steps. It has two halves, a
forward pass and a loss of its values, so that a loss that is coupled over the
batch can be taken over the values of all micro-batches.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from jaxpref import config, losses
from jaxpref.fit.loss import (
  beta,
  compares,
  damp,
  find_loss,
  needs_labels,
  needs_reference,
  nll_weight,
  own_options,
  ranks,
)
from jaxpref.fit.merge import merge_micro_batches
from jaxpref.fit.views import Views
from jaxpref.models.build import Definition, bind
from jaxpref.models.llama.model import Llama
from jaxpref.models.lora import overlay
from jaxpref.ops.attention import packed_attention, sequence_attention
from jaxpref.ops.logprob import token_logp
from jaxpref.types import Params, Term, TextBatch, sum_valid

Terms = dict[str, Term]
Roles = Mapping[str, Params]


@dataclasses.dataclass(frozen=True)
class Objective:
  """A forward pass, and the loss of what comes out of it."""

  # (trainable, frozen, batch, key) -> values, a pytree of float arrays
  forward: Callable[[Roles, Roles, Any, jax.Array], Any]
  # (state, batch, values) -> (terms, state, metrics)
  terms: Callable[[Any, Any, Any], tuple[Terms, Any, Terms]]
  # (batch, values) of stacked micro-batches -> of one that holds them all;
  # only where the loss is coupled over the batch.
  merge: Callable[[Any, Any], tuple[Any, Any]] | None = None

  def __call__(
    self,
    trainable: Roles,
    frozen: Roles,
    state: Any,
    batch: Any,
    key: jax.Array,
  ) -> tuple[Terms, Any, Terms]:
    values = self.forward(trainable, frozen, batch, key)
    return self.terms(state, batch, values)


def read_rows(
  definition: Definition, params: Params, batch: TextBatch, dropout_key: Any
) -> tuple[Llama, Float[Array, "rows tokens embed"]]:
  """The bound model, and its hidden states of packed rows.

  A model without virtual tokens does not see the places that rows have for
  them.
  """
  if batch.prefix and not definition.prompt.length:
    batch = without_prefix(batch)
  assert batch.prefix == definition.prompt.length
  model = bind(definition, params, dropout_key)
  attend = packed_attention(
    batch.expand,
    batch.collapse,
    functools.partial(sequence_attention, backend=definition.attention),
  )
  return model, model(batch.tokens, batch.position, attend)[0]


def without_prefix(batch: TextBatch) -> TextBatch:
  """The same rows for a model without virtual tokens.

  Their places stay in the rows, but in each sequence they come after all else,
  where no causal attention sees them; the text begins at position 0.
  """

  def moved(x: Array) -> Array:
    return jnp.maximum(x - batch.prefix, 0)

  return dataclasses.replace(
    batch,
    position=moved(batch.position),
    expand=tuple(jnp.roll(x, -batch.prefix, axis=-1) for x in batch.expand),
    # What a virtual token's place is given does not matter.
    collapse=moved(batch.collapse),
    prefix=0,
  )


def score_text(
  definition: Definition,
  params: Params,
  batch: TextBatch,
  head_block: int,
  dropout_key: Any = None,
) -> Float32[Array, "rows responses"]:
  """Log-probability of every response token of packed rows, in nats."""
  model, hidden = read_rows(definition, params, batch, dropout_key)
  # The head sees only the states that predict a response token.
  hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)
  return token_logp(
    hidden,
    model.head_kernel(),
    batch.target,
    block=head_block,
    softcap=definition.config.final_logit_softcapping,
  )


def text_objective(
  definition: Definition,
  settings: config.Loss,
  *,
  head_block: int,
  training: bool = False,
) -> Objective:
  """The objective of `settings.name` on packed text.

  Roles: `policy` (trainable); under an adapter it is the factors or virtual
  tokens, and `base` (frozen) the rest. Losses that need a reference take the
  log-probs that the batch carries, else those of `reference` (frozen), a whole
  model; else those of `reference_factors` (frozen) laid over the base, else the
  base's own.

  Args:
    definition: the model.
    settings: the loss and its options.
    head_block: see `token_logp`.
    training: whether an adapter drops inputs.
  """
  loss = find_loss(settings)
  unit, coupled, _ = losses.spec(loss)
  score = functools.partial(score_text, head_block=head_block)

  def forward(
    trainable: Roles, frozen: Roles, batch: TextBatch, key: jax.Array
  ) -> tuple[Array, Array | None]:
    ref_logp = batch.ref_token_logp
    if ref_logp is None and needs_reference(loss):
      ref_logp = jax.lax.stop_gradient(reference(frozen, batch))
    # Micro-batches of a step hold other examples, and so drop other inputs.
    drops = training and definition.lora.dropout > 0
    key = jax.random.fold_in(key, batch.slots.example_id[0])
    policy = overlay(frozen.get("base", {}), trainable["policy"])
    dropout_key = key if drops else None
    return score(definition, policy, batch, dropout_key=dropout_key), ref_logp

  def reference(frozen: Roles, batch: TextBatch) -> Array:
    whole = definition.base or definition
    if "reference" in frozen:
      return score(whole, frozen["reference"], batch)
    if "reference_factors" in frozen:
      laid = overlay(frozen["base"], frozen["reference_factors"])
      return score(definition, laid, batch)
    return score(whole, frozen["base"], batch)

  def terms(
    state: Any, batch: TextBatch, values: tuple[Array, Array | None]
  ) -> tuple[Terms, Any, Terms]:
    views = Views(batch, *values, unit)
    views.damp = damp(settings)
    found = {"loss": loss_term(loss, own_options(settings), views)}
    metrics: Terms = {}
    if compares(loss):
      metrics = _pair_metrics(views, loss, beta(settings))
      if weight := nll_weight(settings):
        metrics["nll"] = nll = _better_nll(views)
        found["nll"] = Term(weight * nll.total, nll.count)
    elif ranks(loss):
      metrics = _pair_metrics(views, loss, beta(settings))
    elif needs_labels(loss):
      metrics = _label_metrics(views, loss, beta(settings))
    return found, state, jax.lax.stop_gradient(metrics)

  merge = merge_micro_batches if coupled else None
  return Objective(forward, terms, merge)


def loss_term(
  loss: Callable[..., Any], options: Mapping[str, Any], views: Views
) -> Term:
  """The loss of every unit, summed; soft labels weigh both directions."""
  names = losses.inputs(loss)

  def of(view: Callable[[str], Array]) -> Array:
    values = loss(*map(view, names), **options)
    # Pairs have equally many steps, of which the mean is a pair's loss.
    by_step = losses.spec(loss).unit == "step"
    return jnp.mean(values, axis=-1) if by_step else values

  values = of(views.__getitem__)
  if not compares(loss):
    return sum_valid(values, views.units)
  pairs = views.batch.comparisons
  if "preference" not in names:  # else the loss knows of soft labels itself
    backward = of(views.swapped)
    values = pairs.preference * values + (1.0 - pairs.preference) * backward
  return sum_valid(values, pairs.valid, pairs.weight)


def _better_nll(views: Views) -> Term:
  """Negative log-likelihood a token of each pair's better response.

  A soft label shares it between the two. Tokens count as often as their
  response is in a comparison.
  """
  pairs = views.batch.comparisons

  def by_slot(weight: Array) -> Float32[Array, "slots_and_padding"]:
    zeros = jnp.zeros(views.batch.slots.valid.shape[0] + 1)
    better = jnp.where(pairs.valid, weight * pairs.preference, 0.0)
    worse = jnp.where(pairs.valid, weight * (1.0 - pairs.preference), 0.0)
    return zeros.at[pairs.better].add(better).at[pairs.worse].add(worse)

  slot = views.batch.slot
  weighted = by_slot(pairs.weight)[slot]
  total = jnp.where(weighted > 0.0, -weighted * views.token_logp, 0.0)
  count = by_slot(jnp.ones_like(pairs.weight))[slot]
  return Term(jnp.sum(total), jnp.sum(count))


def _pair_metrics(views: Views, loss: Callable[..., Any], beta: float) -> Terms:
  def mean(x: Array) -> Term:
    return sum_valid(x.astype(jnp.float32), views.told)

  what = _rewarded(views, loss)
  chosen, rejected = (beta * views[f"{x}_{what}"] for x in _SIDES)
  likely = [views[f"{side}_logp"] for side in _SIDES]
  fell = {"rewards/both_fell": views.both_fell} if views.has_reference else {}
  return {
    **{name: mean(share) for name, share in fell.items()},
    "logps/chosen": mean(likely[0]),
    "logps/rejected": mean(likely[1]),
    "logps/accuracies": mean(likely[0] > likely[1]),
    "rewards/chosen": mean(chosen),
    "rewards/rejected": mean(rejected),
    "rewards/margins": mean(chosen - rejected),
    "rewards/accuracies": mean(chosen > rejected),
    "rewards/ties": mean(chosen == rejected),
  }


def _label_metrics(
  views: Views, loss: Callable[..., Any], beta: float
) -> Terms:
  """Desirable responses are the chosen ones here; pairs count where known."""
  reward = beta * views.slot_values(_rewarded(views, loss))
  logp = views.slot_values("logp")
  pairs = _pair_metrics(views, loss, beta)
  names = ("logps/accuracies", "rewards/accuracies", "rewards/ties")
  metrics = {name: pairs[name] for name in names}
  for side, label in zip(_SIDES, (1, 0), strict=True):
    here = views.valid & (views.batch.slots.label == label)
    metrics[f"logps/{side}"] = sum_valid(logp, here)
    metrics[f"rewards/{side}"] = sum_valid(reward, here)
  if "kl" in losses.inputs(loss):
    metrics["kl"] = Term(views["kl"], jnp.ones(()))
  return metrics


def _rewarded(views: Views, loss: Callable[..., Any]) -> str:
  """What the implicit reward is proportional to."""
  if views.has_reference:
    return "logratio"
  means = any("mean_logp" in name for name in losses.inputs(loss))
  return "mean_logp" if means else "logp"


_SIDES = ("chosen", "rejected")
