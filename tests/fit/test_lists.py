"""Losses of lists: slots gathered by prompt, against the losses by hand."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.data.steps import Steps
from jaxpref.fit.loss import needs_reference, ranks
from jaxpref.fit.merge import merge_micro_batches
from jaxpref.fit.objectives import text_objective
from jaxpref.pair import with_pairs

NAMES = ("plackett_luce", "lipo", "listwise_softmax", "rrhf")


def _scored(*values):
  return [{"x": value} for value in values]


@pytest.fixture(scope="module")
def rated(make_prepared):
  """Lists of four, of two with a third unscored, of one; and a pair."""
  rng = np.random.default_rng(0)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  data = make_prepared(
    [
      (take(4), [take(n) for n in (3, 5, 2, 6)], [], None,
       _scored(0.2, 0.9, 0.9, 0.4)),
      (take(2), [take(2), take(3)], [(1, 0)]),
      (take(3), [take(4), take(1), take(2)], [], None,
       [{"x": 1.0}, {}, {"x": 0.0}]),
      (take(1), [take(2)], [], None, _scored(1.0)),
    ]
  )  # fmt: skip
  return with_pairs(data, config.Pair(axis="x", rule="all_pairs"))[0]


def _batch(data, **given):
  settings = {"batch_size": 4, "rows": 2, "row_length": 24, **given}
  steps = Steps(data, **settings)
  numbers = [
    [j for row in micro for piece in row for j in piece.responses]
    for micro in steps.packing(0)[0]
  ]
  return jax.tree.map(jnp.asarray, steps[0]), numbers


def _values(batch):
  """Made-up log-probs of policy and reference for every response token."""
  rng = np.random.default_rng(1)
  draw = lambda: rng.normal(-2.0, 0.5, batch.slot.shape).astype(np.float32)
  return jnp.asarray(draw()), jnp.asarray(draw())


def _total(definition, name, batch, values):
  loss = losses.get(name)
  if not needs_reference(loss):
    values = values[0], None
  objective = text_objective(definition, config.Loss(name=name), head_block=8)
  terms, _, metrics = objective.terms({}, batch, values)
  return terms["loss"], metrics


@pytest.mark.parametrize("name", NAMES)
def test_a_list_is_the_scored_answers_to_a_prompt(definition, rated, name):
  """Each against the loss of its own sums; one answer alone is no list."""
  stacked, numbers = _batch(rated, row_length=64)
  (numbers,) = numbers
  batch = jax.tree.map(lambda x: x[0], stacked)
  logp, ref = values = _values(batch)
  slot = np.asarray(batch.slot)
  of = lambda x: {
    j: float(np.asarray(x)[slot == s].sum()) for s, j in enumerate(numbers)
  }
  sums, ratios = of(logp), of(logp - ref)
  means = {j: sums[j] / int(rated.response_lengths[j]) for j in sums}
  kinds = {"values": ratios, "logp": sums, "mean_logp": means}
  expected = 0.0
  for members in ([0, 1, 2, 3], [4, 5], [6, 8]):
    arrays = {
      kind: jnp.array([found[j] for j in members])
      for kind, found in kinds.items()
    }
    arrays["scores"] = jnp.asarray(rated.score[members])
    arrays["valid"] = jnp.ones(len(members), bool)
    names = losses.inputs(losses.get(name))
    expected += float(losses.get(name)(*(arrays[each] for each in names)))
  term, metrics = _total(definition, name, batch, values)
  assert int(term.count) == 3
  # Sums in another order: 2e-7 of the value was seen.
  np.testing.assert_allclose(term.total, expected, rtol=1e-5)
  assert np.isfinite(metrics["rewards/accuracies"].total)
  wrong = dict(batch.slots.__dict__, score=-batch.slots.score)
  other = batch.__class__(
    **{**batch.__dict__, "slots": batch.slots.__class__(**wrong)}
  )
  assert (
    abs(float(_total(definition, name, other, values)[0].total) - expected)
    > 1e-3
  )


def test_two_micro_batches_are_as_one(definition, rated):
  """Lists are numbered on when a step's micro-batches are joined."""
  cut, numbers = _batch(rated, row_length=20, rows=1)
  assert len(numbers) > 1
  values = _values(cut)
  parts = [
    _total(definition, "lipo", *jax.tree.map(itemgetter(m), (cut, values)))[0]
    for m in range(len(numbers))
  ]
  whole, _ = _total(definition, "lipo", *merge_micro_batches(cut, values))
  for each, expected in zip(whole, map(sum, zip(*parts))):
    np.testing.assert_allclose(each, expected, rtol=1e-6)


def test_of_pairs_plackett_luce_is_dpo(definition, data):
  batch, _ = _batch(data.select([1, 2, 3]), row_length=64)
  batch = jax.tree.map(lambda x: x[0], batch)
  values = _values(batch)
  listwise, dpo = (
    _total(definition, name, batch, values) for name in ("plackett_luce", "dpo")
  )
  np.testing.assert_allclose(listwise[0].total, dpo[0].total, rtol=1e-6)
  assert int(listwise[0].count) == int(dpo[0].count) == 3
  for name, term in dpo[1].items():
    np.testing.assert_allclose(listwise[1][name].total, term.total, rtol=1e-6)


def test_which_losses_rank():
  assert ranks(losses.plackett_luce)
  assert not ranks(losses.dpo)
  assert needs_reference(losses.plackett_luce)
  assert not needs_reference(losses.rrhf)
