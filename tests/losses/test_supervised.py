"""The likelihood loss against torch's cross-entropy."""

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest
import torch

from jaxpref import losses


def test_sft_is_torchs_cross_entropy():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(7, 11)).astype(np.float32)
  target = rng.integers(11, size=7)
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(logits), torch.tensor(target), reduction="none"
  )
  logp = jax.nn.log_softmax(jnp.asarray(logits))[jnp.arange(7), target]
  # Measured: 2e-7.
  np.testing.assert_allclose(losses.sft(logp), theirs, rtol=2e-6)


def test_sft_is_unreduced():
  logp = -jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(losses.sft(logp), -logp)
  np.testing.assert_array_equal(
    jax.grad(lambda x: jnp.sum(losses.sft(x)))(logp), -np.ones((2, 3))
  )


def test_sft_refuses_bfloat16():
  with pytest.raises(TypeCheckError):
    losses.sft(jnp.zeros(3, jnp.bfloat16))
