"""Sums over what is valid, ranges, and batches as pytrees."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest

from jaxpref.types import (
  Comparisons,
  Record,
  Response,
  Slots,
  Term,
  check_choice,
  check_range,
  sum_valid,
)

VALID = jnp.array([True, False, True])


def test_sum_valid_by_hand():
  term = sum_valid(jnp.array([1.0, 2.0, 4.0]), VALID)
  assert (float(term.total), float(term.count)) == (5.0, 2.0)


def test_weight_scales_and_valid_counts():
  weight = jnp.array([0.0, 7.0, 0.5])
  term = sum_valid(jnp.array([1.0, 2.0, 4.0]), VALID, weight)
  # A weight of 0 counts all the same.
  assert (float(term.total), float(term.count)) == (2.0, 2.0)
  assert float(sum_valid(jnp.ones(3), VALID, 3.0).total) == 6.0


@pytest.mark.parametrize("planted", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_is_planted_in_padding_is_harmless(planted, wrap):
  total = wrap(lambda x, weight: sum_valid(x, VALID, weight).total)
  x = jnp.array([1.0, planted, 4.0])
  weight = jnp.array([1.0, 1.0, 0.5])
  assert float(total(x, weight)) == 3.0
  np.testing.assert_array_equal(jax.grad(total)(x, weight), [1.0, 0.0, 0.5])
  weight = jnp.array([1.0, planted, 0.5])
  assert float(total(x, weight)) == 3.0


def test_nothing_valid_sums_to_zero():
  term = sum_valid(jnp.full(3, np.nan), jnp.zeros(3, bool))
  assert (float(term.total), float(term.count)) == (0.0, 0.0)


@pytest.mark.parametrize(
  ("x", "valid"),
  [
    (jnp.ones(3, jnp.bfloat16), VALID),
    (jnp.ones(3), VALID.astype(jnp.float32)),
    (jnp.ones((3, 1)), VALID),
    (jnp.ones(3), VALID[:1]),
  ],
  ids=["bfloat16", "float mask", "[P, 1]", "[1]"],
)
def test_sum_valid_refuses(x, valid):
  with pytest.raises(TypeCheckError):
    sum_valid(x, valid)


def test_terms_add_up():
  parts = [Term(jnp.float32(1), jnp.float32(2)), Term(jnp.float32(3), 4.0)]
  summed = jax.tree.map(lambda *each: sum(each), *parts)
  assert summed == Term(4.0, 6.0)


def test_check_range_is_half_open():
  check_range("x", 0.0, 0.0, 0.5)
  check_range("x", np.float32(0.25), 0.0, 0.5)
  for bad in (0.5, -1e-6, float("nan"), np.int64(2)):
    with pytest.raises(ValueError, match=r"x is .*at least 0 and below 0\.5"):
      check_range("x", bad, 0.0, 0.5)


def test_check_choice_names_what_is_allowed():
  check_choice("x", "a", "a", "b")
  with pytest.raises(ValueError, match="x is 'c'; it must be 'a' or 'b'"):
    check_choice("x", "c", "a", "b")


def test_batches_are_pytrees_of_arrays():
  number, yes = np.arange(4, dtype=np.int32), np.ones(4, bool)
  score = number.astype(np.float32)
  rated = np.zeros((4, 2), np.float32)
  slots = Slots(number, yes, number, yes, score, rated)
  pairs = Comparisons(*(np.zeros(4, np.float32) for _ in range(5)), rated)
  for part in (slots, pairs):
    first = jax.tree.map(lambda x: x[:2], part)
    assert type(first) is type(part)
    fields = [field.name for field in dataclasses.fields(part)]
    paths, _ = jax.tree.flatten_with_path(first)
    assert [path[0].name for path, _ in paths] == fields


def test_records_cannot_be_changed():
  record = Record("a:1", "prompt", [Response("yes")])
  with pytest.raises(dataclasses.FrozenInstanceError):
    record.prompt = "other"
  assert record.comparisons == ()
