"""Reference log-probs, cached on disk: before training, or as it goes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref import sharding
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit import cached_reference
from jaxpref.fit.cached_reference import CachedReference
from jaxpref.fit.objectives import score_text
from jaxpref.fit.put import put_batch
from jaxpref.models.build import define, init_params


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path))
  # One file a pass, however slow the machine.
  monkeypatch.setattr(cached_reference, "SAVE_SECONDS", math.inf)
  return tmp_path / "reference"


def _steps(data):
  # A step of several micro-batches, and a last one that is not full.
  return Steps(data, batch_size=5, rows=2, row_length=64)


class _Counting:
  """Moves batches to the devices and counts them."""

  def __init__(self, most=1000):
    self.count, self.most = 0, most
    self._put = functools.partial(put_batch, sharding.make_mesh(1, 1, 1))

  def __call__(self, batch):
    if self.count == self.most:
      raise KeyboardInterrupt
    self.count += 1
    return self._put(batch)


@pytest.fixture
def opened(definition, data):
  """opened(**what differs) -> the cache."""

  def call(**given):
    settings = {
      "steps": _steps(data),
      "definition": definition,
      "load": lambda: init_params(definition, jax.random.key(0)),
      "weights": "weights 1",
      "dtype": "float32",
      "head_block": 16,
      "put": _Counting(),
    }
    return CachedReference(**{**settings, **given})

  return call


@pytest.fixture
def cached(opened):
  """cached(**what differs) -> values."""
  return lambda **given: opened(**given).fill()


def test_values_are_those_of_the_live_model(cache, cached, definition, data):
  values = cached()
  assert values.dtype == np.float32
  assert values.shape == (data.response_lengths.sum(),)
  params = init_params(definition, jax.random.key(0))
  score = jax.jit(functools.partial(score_text, definition, head_block=16))
  steps = _steps(data)
  steps.ref_token_logp = values
  for step in range(steps.steps_per_epoch):
    batch = steps[step]
    for m in range(steps.shape.micro_batches):
      part = jax.tree.map(lambda x, m=m: jnp.asarray(x[m]), batch)
      real = batch.slot[m] < steps.shape.slots
      # Measured: equal.
      np.testing.assert_allclose(
        batch.ref_token_logp[m][real], score(params, part)[real], atol=1e-5
      )
      assert not batch.ref_token_logp[m][~real].any()
  assert np.ptp(values) > 1


def test_a_second_call_computes_one_batch_to_compare(cache, cached):
  first = cached()
  files = list(cache.rglob("*.*"))
  again = cached(put=(put := _Counting()))
  np.testing.assert_array_equal(again, first)
  assert put.count == 1
  assert list(cache.rglob("*.*")) == files
  kinds = [file.suffix for file in files]
  assert sorted(kinds) == [".json", ".safetensors"]


@pytest.mark.parametrize(
  "change", ["weights", "dtype", "param_dtype", "attention"]
)
def test_the_address_says_what_the_values_depend_on(
  cache, cached, definition, change, monkeypatch
):
  cached()
  other = define(definition.config, dtype="float32", param_dtype="bfloat16")
  given = {
    "weights": {"weights": "weights 2"},
    "dtype": {"dtype": "bfloat16"},
    "param_dtype": {
      "definition": other,
      "load": lambda: init_params(other, jax.random.key(0)),
    },
  }
  if change == "attention":  # as on another platform
    monkeypatch.setattr(
      cached_reference, "resolve_backend", lambda *_: "splash"
    )
  cached(**given.get(change, {}))
  assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_other_data_use_what_they_share(cache, cached, data, order):
  """Seven of its examples are there; a step of five has not all of them."""
  cached(steps=_steps(data.select(range(7))))
  chosen = range(len(data))[::order]
  other = data.select(chosen)
  values = cached(steps=_steps(other), put=(put := _Counting()))
  steps = _steps(other).steps_per_epoch
  kept = 1  # whole steps among the seven; and that one is compared
  assert put.count == 1 + steps - kept
  assert len(list(cache.rglob("*.safetensors"))) == 2
  # Measured: 2e-6.
  alone = _in_order(cached(weights="weights 2"), data, chosen)
  np.testing.assert_allclose(values, alone, atol=2e-5)
  np.testing.assert_array_equal(cached(steps=_steps(other)), values)


def _in_order(values, data, examples):
  """The values of all tokens, of these examples."""
  first = data.first_token[data.first_response]
  return np.concatenate([values[first[i] : first[i + 1]] for i in examples])


def test_values_do_not_depend_on_the_batches(cache, cached, data):
  """Another batch size finds the same, in the data's own order."""
  first = cached()
  other = Steps(data, batch_size=3, rows=4, row_length=70, shuffle=True)
  again = cached(steps=other, put=(put := _Counting()))
  np.testing.assert_array_equal(again, first)
  assert put.count == 1
  # Measured: 2e-6.
  anew = cached(steps=other, weights="weights 2")
  np.testing.assert_allclose(anew, first, atol=2e-5)


def test_a_pass_that_was_killed_goes_on(cache, cached, data, monkeypatch):
  monkeypatch.setattr(cached_reference, "SAVE_SECONDS", 0.0)
  whole = cached(weights="weights 2")
  count = _steps(data).steps_per_epoch
  with pytest.raises(KeyboardInterrupt):
    cached(put=_Counting(count - 1))
  values = cached(put=(put := _Counting()))
  assert put.count == 2  # the one that is compared, and the one that is missing
  np.testing.assert_array_equal(values, whole)


def test_other_values_are_refused(cache, cached, definition):
  cached()
  # Measured: 0.9 nats a token; of the model itself at most 1e-6.
  other = init_params(definition, jax.random.key(1))
  with pytest.raises(UserError, match="nats a token off what the reference"):
    cached(load=lambda: other)
  cached()
  (file,) = cache.rglob("*.safetensors")
  arrays = load_file(file)
  save_file(arrays | {"token_logp": arrays["token_logp"] + 2e-4}, file)
  with pytest.raises(
    UserError, match=r"are 0\.0002 nats .* Delete that folder"
  ):
    cached()


@pytest.mark.parametrize("damage", ["cut off", "too short", "no name"])
def test_a_damaged_file_is_written_anew(cache, cached, damage):
  first = cached()
  (file,) = cache.rglob("*.safetensors")
  arrays = load_file(file)
  if damage == "cut off":
    file.write_bytes(file.read_bytes()[:-5])
  if damage == "too short":
    save_file(arrays | {"key": arrays["key"][:-1]}, file)
  if damage == "no name":
    save_file({"other": first}, file)
  np.testing.assert_array_equal(cached(), first)
  assert len(list(cache.rglob("*.safetensors"))) == 1
  np.testing.assert_array_equal(load_file(file)["key"], arrays["key"])


def test_filled_step_by_step(cache, opened, cached, data):
  """The same bits as computed before, and each step is computed once."""
  expected = cached(weights="weights 2")
  steps = Steps(data, batch_size=5, rows=2, row_length=64, shuffle=True)
  values = opened(steps=steps, put=(put := _Counting()))
  seen = []
  for step in range(2 * steps.steps_per_epoch):
    assert values.is_whole == (step > steps.steps_per_epoch)
    batch = values.complete(step, steps[step])
    expected_here = steps.reference(step, expected)
    real = batch.slot < steps.shape.slots
    found = np.asarray(batch.ref_token_logp)
    # Another order packs and rounds in another way. Measured: 2e-6.
    np.testing.assert_allclose(found[real], expected_here[real], atol=2e-5)
    seen.append(isinstance(batch.ref_token_logp, jax.Array))
  assert seen == [True] * steps.steps_per_epoch + [False] * (len(seen) // 2)
  assert put.count == steps.steps_per_epoch
  values.write()
  again = opened(steps=steps)
  assert again.is_whole
  np.testing.assert_array_equal(again.values, values.values)


def test_filled_in_the_datas_order_is_equal_in_every_bit(cache, opened, cached):
  expected = cached(weights="weights 2")
  values = opened()
  steps = values.steps
  for step in range(steps.steps_per_epoch):
    values.complete(step, steps[step])
  values.write()
  np.testing.assert_array_equal(values.values, expected)
