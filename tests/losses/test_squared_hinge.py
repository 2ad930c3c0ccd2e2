"""The squared hinge against NumPy and against what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxpref import losses

CHOSEN, REJECTED = jnp.array([0.3, -0.2, 9.0]), jnp.array([-2.4, 1.5, -9.0])


def test_two_known_pairs_and_one_told_apart():
  values = losses.squared_hinge(CHOSEN, REJECTED, beta=0.1)
  np.testing.assert_allclose(values, [0.73**2, 1.17**2, 0.0], rtol=1e-6)


def test_torchs_value_and_gradient():
  chosen, rejected = (torch.tensor(x) for x in np.array([CHOSEN, REJECTED]))
  chosen.requires_grad_()
  theirs = torch.relu(1 - 0.1 * (chosen - rejected)) ** 2
  theirs.sum().backward()
  total = lambda chosen: jnp.sum(losses.squared_hinge(chosen, REJECTED))
  value, grad = jax.value_and_grad(total)(CHOSEN)
  np.testing.assert_allclose(value, theirs.sum().item(), rtol=1e-6)
  np.testing.assert_allclose(grad, chosen.grad, rtol=1e-6)


def test_it_is_the_square_of_the_hinge():
  hinge = losses.hinge(CHOSEN, REJECTED, beta=0.1)
  values = losses.squared_hinge(CHOSEN, REJECTED, beta=0.1)
  np.testing.assert_allclose(values, hinge**2, rtol=1e-6)


def test_up_to_its_target_it_is_ipo_of_half_the_beta():
  ipo = losses.ipo_sum(CHOSEN, REJECTED, beta=0.05)
  values = losses.squared_hinge(CHOSEN, REJECTED, beta=0.1)
  near = CHOSEN - REJECTED < 10.0
  np.testing.assert_allclose(values[near], 0.01 * ipo[near], rtol=1e-6)
  assert values[~near] < 0.01 * ipo[~near]
