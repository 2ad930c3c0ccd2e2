"""Pairs whose two sides both become less likely."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config, losses
from jaxpref.errors import UserError
from jaxpref.fit.guard import PATIENCE, Guard, make_guard
from jaxpref.fit.objectives import loss_term
from jaxpref.fit.views import Views


def _line(chosen, rejected):
  return {"rewards/chosen": chosen, "rewards/rejected": rejected}


def test_warns_once_each_time_it_lasts():
  said = []
  guard = Guard("warn", said.append)
  for step in range(PATIENCE - 1):
    guard.watch(step, _line(-0.1, -0.2))
  guard.watch(98, _line(0.1, -0.2))
  guard.watch(99, {"loss": 1.0})  # a line without pairs
  assert not said
  for step in range(100, 100 + 2 * PATIENCE):
    guard.watch(step, _line(-0.125, -0.25))
  (told,) = said
  assert told.startswith(f"Warning: At step {99 + PATIENCE} both sides")
  assert "rewards/chosen -0.125, rewards/rejected -0.25" in told
  assert "config.loss.damp" in told


def test_stops_or_says_nothing():
  off, stops = Guard("", pytest.fail), Guard("stop", pytest.fail)
  for step in range(PATIENCE - 1):
    off.watch(step, _line(-1.0, -1.0))
    stops.watch(step, _line(-1.0, -1.0))
  off.watch(PATIENCE, _line(-1.0, -1.0))
  with pytest.raises(
    UserError, match=re.escape("with config.train.guard=warn")
  ):
    stops.watch(PATIENCE, _line(-1.0, -1.0))


@pytest.mark.parametrize("name", ["sft", "simpo", "plackett_luce"])
def test_losses_that_it_cannot_guard(name):
  settings = config.build({"train": {"guard": "warn"}, "loss": {"name": name}})
  with pytest.raises(UserError, match="does not compare pairs with a refer"):
    make_guard(settings, print)


def test_what_it_advises_can_be_set():
  """The losses of noised steps have no `damp`."""
  said = []
  settings = {"train": {"guard": "warn"}, "loss": {"name": "pso_offline"}}
  guard = make_guard(config.build(settings), said.append)
  for step in range(PATIENCE):
    guard.watch(step, _line(-1.0, -1.0))
  assert said[0].endswith("a higher config.loss.beta.")


class _Ratios(Views):
  """Log-ratios that are given."""

  def __init__(self, ratio, damp):
    self.unit, self.ratio, self.damp = "pair", ratio, damp
    numbers, ones = jnp.arange(0, len(ratio), 2), jnp.ones(len(ratio) // 2)
    pairs = types.SimpleNamespace(
      better=numbers, worse=numbers + 1, valid=ones > 0, weight=ones,
      preference=ones,
    )  # fmt: skip
    self.batch = types.SimpleNamespace(comparisons=pairs)

  def slot_values(self, what):
    return self.ratio


@pytest.mark.parametrize("damp", [0.0, 0.5, 1.0])
def test_damps_the_worse_side_of_pairs_that_fell(damp):
  """Of three pairs the second fell on both sides; a loss and its gradient."""
  ratio = jnp.array([0.2, -0.1, -0.3, -0.4, -0.2, 0.1])

  def total(ratio):
    views = _Ratios(ratio, damp)
    return loss_term(losses.dpo, {"beta": 1.0}, views).total

  told = _Ratios(ratio, damp).both_fell
  assert told.tolist() == [False, True, False]
  value, gradient = jax.value_and_grad(total)(ratio)
  better, worse = ratio[0::2], ratio[1::2]
  expected = jnp.sum(losses.dpo(better, worse, beta=1.0))
  assert value == expected
  pull = jax.nn.sigmoid(worse - better)
  kept = np.array([1.0, 1.0 - damp, 1.0])
  np.testing.assert_allclose(gradient[0::2], -pull, rtol=1e-6)
  np.testing.assert_allclose(gradient[1::2], pull * kept, rtol=1e-6)
