"""Losses of judges against papers' numbers and NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .samples import assert_examples_run, assert_is_numpys, close

# The letters' logits with the better answer first, then second.
FIRST = jnp.array([1.2]), jnp.array([0.3])
SECOND = jnp.array([0.9]), jnp.array([0.4])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def reference_judge(a, b, c, d, *, consistency):
  p, q = sigmoid(a - b), sigmoid(c - d)
  return -(np.log(p) + np.log(q)) / 2 + consistency * (p - q) ** 2


def test_the_example_in_the_docstring_runs():
  assert_examples_run(losses.judge_preference)


def test_one_order_of_known_letters():
  loss = losses.pairwise_generative(jnp.array([1.3]), jnp.array([0.4]))
  close(loss, [0.34115387])
  close(losses.pairwise_generative(*FIRST), [0.341153875])
  close(losses.pairwise_generative(*SECOND), [0.474076984])


def test_both_orders_of_known_letters():
  close(losses.pairwise_judge(*FIRST, *SECOND), [0.407615429])
  close(losses.pairwise_judge(*FIRST, *SECOND, consistency=1.0), [0.415445940])


def test_preferences_of_known_letters():
  close(losses.judge_preference(*FIRST, *SECOND), [0.666704417])
  other = (jnp.array([x]) for x in (1.3, 0.4, 0.2, 0.9))
  close(losses.judge_preference(*other), [0.52138087])
  one = (jnp.array([x]) for x in (1.3, 0.4, 1.3, 0.4))
  close(losses.judge_preference(*one, temperature=0.8), [0.75491499])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_and_gradients(seed):
  letters = np.random.default_rng(seed).normal(scale=2, size=(4, 6))
  inputs = dict(zip("abcd", letters, strict=True))
  assert_is_numpys(
    losses.pairwise_judge, reference_judge, inputs, consistency=0.7
  )
  assert_is_numpys(
    losses.pairwise_generative,
    lambda a, b: np.log(np.exp(a) + np.exp(b)) - a,
    {"a": letters[0], "b": letters[1]},
  )
  assert_is_numpys(
    losses.judge_preference,
    lambda a, b, c, d, temperature: (
      (sigmoid((a - b) / temperature) + sigmoid((c - d) / temperature)) / 2
    ),
    inputs,
    temperature=0.8,
  )


def test_a_judge_without_an_opinion():
  zero = jnp.zeros(2)
  close(losses.pairwise_generative(zero, zero), np.full(2, np.log(2)))
  close(
    losses.pairwise_judge(*[zero] * 4, consistency=3), np.full(2, np.log(2))
  )
  close(losses.judge_preference(*[zero] * 4), np.full(2, 0.5))


def test_a_liking_for_a_place_costs_and_earns_nothing():
  """It always says "the first": the reward is 0.5, the gap is priced."""
  place, none = jnp.array([3.0]), jnp.array([0.0])
  letters = place, none, none, place
  close(losses.judge_preference(*letters), [0.5])
  priced = losses.pairwise_judge(*letters, consistency=1.0)
  gap = sigmoid(3.0) - sigmoid(-3.0)
  close(priced - losses.pairwise_judge(*letters), [gap**2])


def test_swapping_the_answers():
  a, b, c, d = *FIRST, *SECOND
  close(
    losses.judge_preference(a, b, c, d) + losses.judge_preference(b, a, d, c),
    [1.0],
  )
  close(
    losses.pairwise_generative(b, a) - losses.pairwise_generative(a, b), a - b
  )


def test_letters_of_both_orders_are_two_pairs():
  """Without a price on the gap, which of the orders is which is all one."""
  mean = 0.5 * (
    losses.pairwise_generative(*FIRST) + losses.pairwise_generative(*SECOND)
  )
  close(losses.pairwise_judge(*FIRST, *SECOND), mean)
