"""Losses over the whole batch, and terms of two units, in one step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.fit.loss import nll_weight
from jaxpref.types import Term

from .conftest import _train
from .test_step import _assert_same, _loads


@pytest.fixture(scope="module")
def train_pairs(definition, make_prepared):
  """train_pairs(**what differs): three steps of eight uneven pairs."""
  rng = np.random.default_rng(0)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  pairs = [
    (take(3), [take(n) for n in rng.permutation([3, 5 + i % 3])], [(1, 0)])
    for i in range(24)
  ]
  return functools.cache(
    functools.partial(_train, definition, make_prepared(pairs), batch_size=8)
  )


COUPLED = ("kto", "bco", "aot", "aot_unpaired")


@pytest.mark.parametrize("loss", COUPLED)
def test_four_micro_batches_are_one(train_pairs, loss):
  """Though means and orders are taken over all of them."""
  one, four = (
    train_pairs(loss=loss),
    train_pairs(loss=loss, rows=1, row_length=48 if loss == "kto" else 28),
  )
  assert one.steps.shape.micro_batches == 1
  assert four.steps.shape.micro_batches == 4
  assert np.ptp(one.losses) > 1e-3
  _assert_same(one, four)
  assert any(len(set(tokens)) > 1 for _, tokens in _loads(four))  # uneven


@pytest.mark.parametrize("loss", ["kto", "aot"])
@pytest.mark.parametrize(
  "way",
  [{"mesh": (1, 4, 2)}, {"reference": "cached"}, {"share_prompts": False}],
  ids=["4 fsdp x 2 tensor", "cached reference", "prompts repeated"],
)
def test_any_layout_is_the_same(train, loss, way):
  size = {"row_length": 128}
  _assert_same(train(loss=loss, **size), train(loss=loss, **size, **way))


def test_kto_of_equal_models_is_half(train):
  """1 - σ(0 - 0); its estimate of the divergence is zero then."""
  first = train(loss="kto", row_length=128).metrics[0]
  assert first["kl"] == Term(0.0, 1.0)
  assert first["loss"].total == pytest.approx(0.5 * first["loss"].count)
  later = train(loss="kto", row_length=128).metrics[1]
  assert later["kl"].total > 0.0


def test_kto_counts_responses_that_are_labelled(train):
  trained = train(loss="kto", row_length=128)
  # Of each step's tall tree the best and the worst of four; all of the pairs.
  sides = [
    [m[f"rewards/{side}"].count for side in ("chosen", "rejected")]
    for m in trained.metrics
  ]
  assert sides == [[5, 5], [5, 5], [3, 3]]
  assert [m["loss"].count for m in trained.metrics] == [10, 10, 6]
  slots = jax.device_get(trained.batches[0]).slots
  assert slots.mismatched.sum() == (slots.valid & ~slots.mismatched).sum() == 12


def test_a_coupled_loss_of_parts_would_differ(train):
  """Each micro-batch by itself: what the tests above must tell apart."""
  values = losses.aot_unpaired
  rng = np.random.default_rng(0)
  chosen, rejected = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
  valid = jnp.ones(8, bool)
  whole = values(chosen, rejected, valid).mean()
  parts = [
    values(chosen[i : i + 2], rejected[i : i + 2], valid[:2]).mean()
    for i in range(0, 8, 2)
  ]
  assert abs(whole - np.mean(parts)) > 1e-4


@pytest.mark.parametrize("rows", [8, 1])
def test_the_nll_of_better_responses_is_a_term_of_its_own(train, rows):
  """A mean over tokens beside a mean over pairs, on any micro-batches."""
  one = train(loss="cpo", reference="none")
  trained = train(loss="cpo", reference="none", rows=rows)
  _assert_same(one, trained)
  for metrics, batch in zip(trained.metrics, trained.batches, strict=True):
    batch = jax.device_get(batch)
    tokens = 0.0
    for m in range(batch.slot.shape[0]):
      pairs = jax.tree.map(lambda x, m=m: x[m], batch.comparisons)
      count = np.bincount(batch.slot[m].ravel())
      for better, worse, p, valid in zip(
        pairs.better, pairs.worse, pairs.preference, pairs.valid, strict=True
      ):
        tokens += valid * (p * count[better] + (1 - p) * count[worse])
    np.testing.assert_allclose(metrics["nll"].count, tokens, rtol=1e-6)
    loss, nll = (metrics[x].total / metrics[x].count for x in ("loss", "nll"))
    assert nll > 1
    assert loss - nll > 0  # the preference part, weighted 1


def test_nll_weight_is_the_papers_unless_given():
  settings = {"cpo": 1.0, "orpo": 1.0, "dpo": 0.0, "simpo": 0.0}
  for name, expected in settings.items():
    assert nll_weight(config.Loss(name=name)) == expected
    given = config.Loss(name=name, options={"nll_weight": 0.5})
    assert nll_weight(given) == 0.5
