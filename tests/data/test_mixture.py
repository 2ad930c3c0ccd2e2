"""Shares of sources in epochs and in steps, and what is refused."""

import re

import numpy as np
import pytest

from jaxpref import config
from jaxpref.data.joined import join
from jaxpref.data.mixture import draws_per_epoch, make_order
from jaxpref.data.order import Order, turns
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError

SIZES = {"hh": 60, "own": 10, "web": 25}
SHARES = {"hh": 0.5, "own": 0.3, "web": 0.2}


@pytest.fixture(scope="module")
def data(make_prepared):
  pair = ([1], [[2], [3]], [(0, 1)])
  return join({name: make_prepared([pair] * n) for name, n in SIZES.items()})


def _mix(data, batch_size=20, weights=SHARES, **given):
  sources = {name: {"path": "x", "weight": w} for name, w in weights.items()}
  tree = {"sources": sources, "batch_size": batch_size, **given}
  return make_order(config.build({"data": tree}).data, data)[0]


def test_an_epoch_has_every_example_and_the_shares():
  # `web` lasts longest: 25 of it are a fifth of 125.
  assert draws_per_epoch(SIZES, SHARES) == {"hh": 62, "own": 38, "web": 25}
  thirds = dict.fromkeys(SIZES, 7.0)
  assert draws_per_epoch(SIZES, thirds) == dict.fromkeys(SIZES, 60)
  assert draws_per_epoch(SIZES, dict.fromkeys(SIZES, 0.0)) == SIZES


@pytest.mark.parametrize("seed", range(5))
def test_every_stretch_of_an_epoch_has_the_shares(seed):
  """Each source's first k of n are at most 1 + K / 2 away from its share."""
  draws = np.random.default_rng(seed).integers(1, 200, size=4)
  found = turns(draws.tolist())
  assert np.bincount(found).tolist() == draws.tolist()
  counted = np.cumsum(found[:, None] == np.arange(4), axis=0)
  wanted = np.arange(1, len(found) + 1)[:, None] * draws / draws.sum()
  assert np.abs(counted - wanted).max() <= 1 + 4 / 2


def test_steps_hold_the_shares_and_nothing_twice(data):
  order = _mix(data)
  steps = Steps(data, batch_size=20, rows=2, row_length=64, order=order)
  assert steps.steps_per_epoch == 7
  seen = np.zeros(len(SIZES), int)
  for step in range(6):
    examples = steps.examples(step)
    assert len(set(examples.tolist())) == 20
    counts = np.bincount(data.source[examples], minlength=3)
    np.testing.assert_allclose(counts, [10, 6, 4], atol=1)
    seen += counts
    assert steps.seen(step + 1) == dict(zip(SIZES, seen.tolist(), strict=True))
  assert steps.seen(7) == order.draws
  assert steps.seen(9)["web"] == 25 + steps.seen(2)["web"]


def test_a_source_is_gone_through_before_it_comes_again(data):
  order = _mix(data)
  for epoch in (0, 1):
    own = [i for i in order(epoch) if data.source[i] == 1]
    for start in (0, 10, 20):
      assert sorted(own[start : start + 10]) == list(range(60, 70))
  assert order(0).tolist() != order(1).tolist()
  assert order(0).tolist() == _mix(data)(0).tolist()


def test_unshuffled_sources_take_turns_in_their_own_order(data):
  order = _mix(data, shuffle=False)(3)
  assert order[data.source[order] == 2].tolist() == list(range(70, 95))


def test_ranks_come_before_the_seed():
  rank = np.array([2.0, 0.0, 1.0, 0.0, 5.0])
  order = Order(np.array([0, 0, 0, 0, 1]), {"a": 4, "b": 2}, seed=0, rank=rank)
  for epoch in range(3):
    found = [i for i in order(epoch) if i < 4]
    assert found[2:] == [2, 0]
    assert sorted(found[:2]) == [1, 3]


def test_what_is_told(data):
  weights = {name: {"path": "x", "weight": w} for name, w in SHARES.items()}
  tree = {"sources": weights, "batch_size": 20}
  settings = config.build({"data": tree}).data
  assert make_order(settings, data)[1].splitlines()[1] == (
    "own: an epoch has 38 of its 10 examples (3.8 times each), 30.4% of all."
  )


def test_a_step_that_would_hold_an_example_twice(data):
  message = "sources.own has 10 examples to train on, and its weight puts 12"
  with pytest.raises(UserError, match=re.escape(message)):
    _mix(data, batch_size=40)


def test_a_source_of_which_nothing_is_left(data):
  rest = data.select(np.flatnonzero(data.source != 1))
  with pytest.raises(UserError, match=r"sources\.own has no example left"):
    _mix(rest)
