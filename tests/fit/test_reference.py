"""Reference log-probs, cached on disk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.objectives import score_text
from jaxpref.fit.put import put_batch
from jaxpref.fit.reference import check_mode, reference_logps, with_mode
from jaxpref.models.build import define, init_params


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPREF_CACHE", str(tmp_path))
  return tmp_path / "reference"


def _steps(data):
  # A step of several micro-batches, and a last one that is not full.
  return Steps(data, batch_size=5, rows=2, row_length=64)


def _no_weights():
  raise AssertionError("the weights should not be needed")


def _no_batches(batch):
  raise AssertionError("no batch should be scored")


@pytest.fixture
def cached(definition, data):
  """cached(**what differs) -> values."""

  def call(**given):
    settings = {
      "steps": _steps(data),
      "definition": definition,
      "load": lambda: init_params(definition, jax.random.key(0)),
      "weights": "weights 1",
      "dtype": "float32",
      "head_block": 16,
      "put": functools.partial(put_batch, sharding.make_mesh(1, 1, 1)),
    }
    return reference_logps(**{**settings, **given})

  return call


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


def test_a_second_call_reads_the_file(cache, cached):
  first = cached()
  (file,) = cache.iterdir()
  again = cached(load=_no_weights, put=_no_batches)
  np.testing.assert_array_equal(again, first)
  np.testing.assert_array_equal(load_file(file)["token_logp"], first)
  assert list(cache.iterdir()) == [file]  # and leaves nothing else


@pytest.mark.parametrize(
  "change", ["weights", "dtype", "data", "order", "param_dtype"]
)
def test_the_address_says_what_the_values_depend_on(
  cache, cached, data, definition, change
):
  cached()
  other = define(definition.config, dtype="float32", param_dtype="bfloat16")
  given = {
    "weights": {"weights": "weights 2"},
    "dtype": {"dtype": "bfloat16"},
    "data": {"steps": _steps(data.select(range(5)))},
    "order": {"steps": _steps(data.select(range(len(data))[::-1]))},
    "param_dtype": {
      "definition": other,
      "load": lambda: init_params(other, jax.random.key(0)),
    },
  }
  cached(**given[change])
  assert len(list(cache.iterdir())) == 2


def test_values_do_not_depend_on_the_batches(cache, cached, data):
  """Another batch size finds the same file, in the data's own order."""
  first = cached()
  other = Steps(data, batch_size=3, rows=4, row_length=70, shuffle=True)
  again = cached(steps=other, load=_no_weights)
  np.testing.assert_array_equal(again, first)
  (file,) = cache.iterdir()
  file.unlink()
  # Measured: 2e-6.
  np.testing.assert_allclose(cached(steps=other), first, atol=2e-5)


@pytest.mark.parametrize("damage", ["cut off", "of other data", "no name"])
def test_a_damaged_file_is_written_anew(cache, cached, damage):
  first = cached()
  (file,) = cache.iterdir()
  if damage == "cut off":
    file.write_bytes(file.read_bytes()[:-5])
  if damage == "of other data":
    save_file({"token_logp": first[:-1]}, file)
  if damage == "no name":
    save_file({"other": first}, file)
  np.testing.assert_array_equal(cached(), first)
  np.testing.assert_array_equal(load_file(file)["token_logp"], first)


def test_a_torn_temporary_file_is_no_cache(cache, cached):
  cache.mkdir(parents=True)
  torn = cache / "tmpabc.tmp"
  torn.write_bytes(b"\x10\0\0\0\0\0\0\0{")
  values = cached()
  assert np.isfinite(values).all()
  torn.unlink()
  (file,) = cache.iterdir()
  assert file.suffix == ".safetensors"


def _settings(loss, mode):
  options = {} if loss == "sft" else {"beta": 0.1}
  return config.build(
    {"loss": {"name": loss, **options}, "reference": {"mode": mode}}
  )


@pytest.mark.parametrize("mode", ["live", "cached"])
def test_a_mode_that_is_said_is_kept(mode, data):
  kept = with_mode(_settings("dpo", mode), _steps(data))
  assert kept == _settings("dpo", mode)
  none = with_mode(_settings("sft", mode), _steps(data))
  assert none == _settings("sft", "none")


def test_auto_caches_what_is_seen_at_least_once(data):
  for num_steps, mode in ((2, "live"), (3, "cached"), (30, "cached")):
    steps = Steps(
      data, batch_size=5, rows=2, row_length=64, num_steps=num_steps
    )
    chosen = with_mode(_settings("dpo", "auto"), steps)
    assert chosen.reference.mode == mode


def test_a_loss_that_needs_a_reference():
  with pytest.raises(UserError, match="'none', and the loss 'ipo'"):
    check_mode(_settings("ipo", "none"))
  check_mode(_settings("ipo", "auto"))
  check_mode(_settings("sft", "none"))
