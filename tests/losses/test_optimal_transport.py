"""Losses that sort over the batch, against known numbers and TRL's code."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

from .pairs import assert_is_trls, of_known, softplus, trl_case, trl_cases

NAMES = ["aot", "aot_unpaired"]
few = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    # At the pair whose margin is meant: the first pair's, 3, is the larger.
    ("aot", [0.6026529, 0.7391593]),
    ("aot_unpaired", [0.7549461, 0.5891850]),
  ],
)
def test_two_known_pairs(name, expected):
  values = of_known(name, {}, beta=0.1)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@trl_cases(*NAMES)
def test_trls_mean_and_gradients(case):
  assert_is_trls(case["name"], case, **case["options"])


def test_paired_and_unpaired_are_not_the_same():
  """TRL 0.19's `aot_pair` is 1.16's, and our, `aot_unpaired`."""
  cases = [trl_case(name, beta=0.5, label_smoothing=0.0) for name in NAMES]
  assert cases[0]["logratio"] == cases[1]["logratio"]
  assert abs(cases[0]["loss"][0] - cases[1]["loss"][0]) > 1e-3


def _batch(name, seed, shape=(7,), valid=None):
  """Inputs of a loss."""
  rng = np.random.default_rng(seed)
  made = {}
  for key in losses.inputs(losses.get(name)):
    x = rng.normal(scale=4.0, size=shape)
    made[key] = -np.abs(x) if key.endswith("logp") else x
  made["valid"] = np.ones(shape, bool) if valid is None else valid
  return {
    key: jnp.asarray(x, bool if x.dtype == bool else jnp.float32)
    for key, x in made.items()
  }


def _sides(name, batch):
  """What is sorted: the policy's numbers, and what they are held against."""
  x = {key: np.float64(each) for key, each in batch.items()}
  if name == "aot_unpaired":
    return x["chosen_logratio"], x["rejected_logratio"]
  policy = x["chosen_logp"] - x["rejected_logp"]
  return policy, policy - (x["chosen_logratio"] - x["rejected_logratio"])


def _slow(above, below, valid, beta, s):
  """Rank by rank in a loop, in float64."""
  real = np.flatnonzero(valid)
  out = np.full(above.shape, np.nan)
  ranks = zip(real[above[real].argsort()], real[below[real].argsort()])
  for i, j in ranks:
    d = beta * (above[i] - below[j])
    out[i] = (1 - s) * softplus(-d) + s * softplus(d)
  return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_numpys_values_and_gradients(name, seed):
  valid = np.arange(7) != seed + 2
  batch = _batch(name, seed, valid=valid)
  options = {"beta": 0.3, "label_smoothing": 0.2}
  loss = functools.partial(losses.get(name), **options)
  values = loss(*batch.values())
  expected = _slow(*_sides(name, batch), valid, *options.values())
  np.testing.assert_allclose(values[valid], expected[valid], rtol=1e-5)

  total = lambda *x: jnp.sum(jnp.where(valid, loss(*x), 0.0))
  floats = range(len(batch) - 1)
  grads = dict(zip(batch, jax.grad(total, floats)(*batch.values())))
  # By the policy's log-probs, which move logp and logratio alike; the
  # reference's are constants.
  above, below = _sides(name, batch)
  step = 1e-6
  for side, sign in (("chosen", 1), ("rejected", -1)):
    ours = sum(grad for key, grad in grads.items() if key.startswith(side))
    for i in range(len(valid)):
      moved = np.zeros(7)
      moved[i] = step
      if name == "aot":
        up, down = (
          _slow(above + sign * by, below, valid, *options.values())
          for by in (moved, -moved)
        )
      else:
        shifts = [(by, 0) if sign > 0 else (0, by) for by in (moved, -moved)]
        up, down = (
          _slow(above + a, below + b, valid, *options.values())
          for a, b in shifts
        )
      slope = (np.nansum(up) - np.nansum(down)) / (2 * step)
      np.testing.assert_allclose(ours[i], slope, rtol=1e-4, atol=1e-6)


def test_the_reference_is_a_constant():
  """Its margins are made of log-ratios, which get no gradient by them."""
  batch = _batch("aot", 4)
  total = lambda *x: jnp.sum(losses.aot(*x))
  by_logp, _, *by_logratio = jax.grad(total, range(4))(*batch.values())
  assert (by_logp < 0).all()
  for grad in by_logratio:
    np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_padding_counts_for_nothing(name):
  """Wherever it stands, and whatever it holds."""
  valid = np.array([True, False, True, True, False, True, True])
  batch = _batch(name, 5, valid=valid)
  loss = losses.get(name)
  alone = {key: x[valid] for key, x in batch.items()}
  expected = loss(*alone.values())
  for filling in (np.nan, np.inf, -np.inf, -1e4, 1e4):
    dirty = {
      key: x if x.dtype == bool else jnp.where(valid, x, filling)
      for key, x in batch.items()
    }
    values = loss(*dirty.values())
    np.testing.assert_array_equal(values[valid], expected)
    total = lambda *x: jnp.sum(jnp.where(valid, loss(*x), 0.0))
    grads = jax.grad(total, range(len(batch) - 1))(*dirty.values())
    for grad in grads:
      np.testing.assert_array_equal(grad[~valid], 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_is_all_of_its_axes(name):
  batch = _batch(name, 6, shape=(3, 4))
  flat = {key: x.reshape(-1) for key, x in batch.items()}
  loss = losses.get(name)
  np.testing.assert_array_equal(
    loss(*batch.values()).reshape(-1), loss(*flat.values())
  )
  assert losses.spec(loss).coupled


@pytest.mark.parametrize("name", NAMES)
def test_no_pair_at_all(name):
  batch = _batch(name, 7, valid=np.zeros(7, bool))
  assert np.isfinite(losses.get(name)(*batch.values())).all()


_unpaired = jax.jit(losses.aot_unpaired)


@few
@given(st.permutations(range(6)), st.integers(0, 9))
def test_unpaired_has_no_pairs(order, seed):
  """Which rejected response stands beside which chosen one says nothing."""
  a, b, valid = _batch("aot_unpaired", seed, shape=(6,)).values()
  values = _unpaired(a, b, valid)
  np.testing.assert_array_equal(
    _unpaired(a, b[jnp.array(order)], valid), values
  )


_paired = jax.jit(losses.aot)


@few
@given(st.permutations(range(6)), st.integers(0, 9))
def test_paired_forgets_which_pair_the_reference_knew(order, seed):
  w, l, c, r, valid = _batch("aot", seed, shape=(6,)).values()
  order = jnp.array(order)
  # The same reference margins, at other pairs.
  others = (w - l) - ((w - l) - (c - r))[order]
  values = _paired(w, l, c, r, valid)
  moved = _paired(w, l, others, jnp.zeros_like(others), valid)
  # Measured: 3e-7, of differences rounded once more.
  np.testing.assert_allclose(moved, values, rtol=3e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_pair_is_dpo(name):
  batch = _batch(name, 8, shape=(1,))
  dpo = losses.dpo(batch["chosen_logratio"], batch["rejected_logratio"])
  np.testing.assert_allclose(losses.get(name)(*batch.values()), dpo, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_value_where_both_models_agree(name):
  batch = _batch(name, 9)
  batch |= {key: 0 * x for key, x in batch.items() if key.endswith("ratio")}
  # Of log-probs that differ, in the paired case.
  values = losses.get(name)(*batch.values(), label_smoothing=0.3)
  np.testing.assert_allclose(values, np.log(2), rtol=1e-6)


def test_swapping_turns_the_sign():
  a, b, valid = _batch("aot_unpaired", 10).values()
  there, back = _unpaired(a, b, valid), _unpaired(b, a, valid)
  # By rank, e^-loss is σ(m) there and σ(-m) back.
  there, back = there[jnp.argsort(a)], back[jnp.argsort(b)]
  np.testing.assert_allclose(np.exp(-there) + np.exp(-back), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_label_smoothing_out_of_range(name):
  batch = _batch(name, 11)
  with pytest.raises(ValueError, match=r"label_smoothing .* below 0\.5"):
    losses.get(name)(*batch.values(), label_smoothing=0.5)
