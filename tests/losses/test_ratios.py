"""What policy-gradient losses share, at its limits."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpref import losses

from .samples import assert_examples_run, close


def test_examples_in_docstrings_run():
  assert_examples_run(losses.bounded_exp, losses.clip_surrogate)


def test_the_exponential_is_exact_up_to_20():
  x = jnp.linspace(-100.0, 20.0, 41)
  close(losses.bounded_exp(x), np.exp(np.asarray(x, np.float64)), rtol=3e-6)
  grad = jax.vmap(jax.grad(losses.bounded_exp))(x)
  close(grad, np.exp(np.asarray(x, np.float64)), rtol=3e-6)


def test_the_exponential_goes_on_as_its_tangent():
  x = jnp.array([21.0, 100.0, 1e4])
  close(losses.bounded_exp(x), np.exp(20.0) * (1.0 + np.asarray(x) - 20.0))
  close(jax.vmap(jax.grad(losses.bounded_exp))(x), np.full(3, np.exp(20.0)))


def test_a_ratio_that_has_gone_far_enough_has_no_gradient():
  """Only in the direction that the advantage rewards."""
  surrogate = lambda logratio, advantage: losses.clip_surrogate(
    logratio, advantage, epsilon_low=0.2, epsilon_high=0.28
  )
  slope = jax.vmap(jax.grad(surrogate))
  ratio = jnp.array([1.3, 0.7, 1.3, 0.7, 1.27, 1.27])
  advantage = jnp.array([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
  expected = [0.0, 0.0, 1.3, -0.7, -1.27, 1.27]
  close(slope(jnp.log(ratio), advantage), expected)
  values = [-1.28, 0.8, 1.3, -0.7, -1.27, 1.27]
  close(surrogate(jnp.log(ratio), advantage), values)


def test_sums_and_means_leave_out_what_is_masked():
  x = jnp.array([[1.0, jnp.nan, 3.0], [jnp.nan, jnp.inf, 0.0]])
  mask = jnp.array([[True, False, True], [False, False, False]])
  close(losses.sum_where(x, mask), [4.0, 0.0])
  close(losses.mean_where(x, mask), [2.0, 0.0])
  grad = jax.grad(lambda x: jnp.sum(losses.mean_where(x, mask)))(x)
  close(grad, [[0.5, 0, 0.5], [0, 0, 0]])
