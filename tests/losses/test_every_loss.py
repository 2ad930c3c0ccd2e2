"""What every loss promises, tried on each one that is registered."""

import doctest
import functools
import inspect

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest

from jaxpref import losses
from jaxpref.types import sum_valid

from .every import call, float_grads, is_float, make_inputs, value_shape

NAMES = losses.names()
every_loss = pytest.mark.parametrize("name", NAMES)
MASKS = ("valid", "mask", "present")


def _unmasked(loss):
  """The inputs with nothing masked: then every entry takes part."""
  inputs = make_inputs(loss)
  for name in MASKS:
    if name in inputs:
      inputs[name] = jnp.ones_like(inputs[name])
  return inputs


def _hyper_parameters(loss):
  return {
    name: parameter.default
    for name, parameter in inspect.signature(loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and isinstance(parameter.default, int | float)
    and not isinstance(parameter.default, bool)
  }


@every_loss
def test_values_are_float32_and_one_a_unit(name):
  loss = losses.get(name)
  inputs = make_inputs(loss)
  values = call(loss, inputs)
  assert values.dtype == jnp.float32
  assert np.isfinite(values).all()
  assert values.shape == value_shape(loss, inputs)


@every_loss
def test_jit_and_vmap_change_nothing(name):
  loss = losses.get(name)
  inputs = make_inputs(loss)
  eager = call(loss, inputs)
  # Measured: 3e-6 of the value, where XLA fuses what NumPy's order separates.
  same = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
  same(jax.jit(loss)(*inputs.values()), eager)
  twice = {key: jnp.stack([x, x]) for key, x in inputs.items()}
  for each in jax.vmap(loss)(*twice.values()):
    same(each, eager)


@every_loss
def test_any_number_of_leading_axes(name):
  loss = losses.get(name)
  if losses.spec(loss).coupled:
    pytest.skip("coupled over all leading axes: other batch, other values")
  inputs = make_inputs(loss)
  grid = {key: x[None] if x.ndim else x for key, x in inputs.items()}
  values = call(loss, grid)
  np.testing.assert_allclose(values[0], call(loss, inputs), rtol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_dtypes_are_refused(name, dtype):
  loss = losses.get(name)
  inputs = make_inputs(loss)
  floats = [key for key, x in inputs.items() if is_float(x)]
  for key in floats:
    wrong = inputs | {key: inputs[key].astype(dtype)}
    with pytest.raises(TypeCheckError):
      jax.jit(loss)(*wrong.values())


@every_loss
def test_shapes_that_would_broadcast_are_refused(name):
  """[P] with [P, 1] would give [P, P], and no error."""
  loss = losses.get(name)
  inputs = make_inputs(loss)
  arrays = [key for key, x in inputs.items() if x.ndim]
  if len(arrays) < 2:
    pytest.skip("one array alone broadcasts with nothing")
  for key in arrays:
    for change in (
      lambda x: x[..., None],
      lambda x: x[:1],
      lambda x: x[0],
      lambda x: x[None],
    ):
      wrong = inputs | {key: change(inputs[key])}
      with pytest.raises(TypeCheckError):
        call(loss, wrong)


@every_loss
def test_nan_in_padding_is_harmless(name):
  """To the sum, and to the gradient of everything that is not padding."""
  loss = losses.get(name)
  inputs = make_inputs(loss)
  mask = next((inputs[key] for key in MASKS if key in inputs), None)
  own = mask is not None
  values = call(loss, inputs)
  if not own:  # the loss knows no padding: `sum_valid` does
    mask = jnp.arange(values.shape[0]) % 3 != 1
  keep = jnp.ones_like(values, bool)
  if mask.ndim <= values.ndim:
    keep = keep & _over(mask, values)

  def planted(x):
    if not is_float(x) or x.shape[: mask.ndim] != mask.shape:
      return x
    return jnp.where(_over(mask, x), x, jnp.nan)

  dirty = {key: planted(x) for key, x in inputs.items()}
  assert any(np.isnan(x).any() for x in dirty.values() if is_float(x))
  clean_sum = sum_valid(values, keep).total
  dirty_sum = sum_valid(call(loss, dirty), keep).total
  np.testing.assert_allclose(dirty_sum, clean_sum, rtol=1e-6)
  ours, theirs = (float_grads(loss, x, keep) for x in (dirty, inputs))
  for key, grad in ours.items():
    real, grad = ~np.isnan(dirty[key]), np.asarray(grad)
    np.testing.assert_allclose(
      grad[real],
      np.asarray(theirs[key])[real],
      rtol=1e-5,
      atol=1e-7,
      err_msg=key,
    )
    if own:
      assert np.isfinite(grad).all(), key


def _over(mask, x):
  return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


@every_loss
def test_the_order_of_units_does_not_matter(name):
  loss = losses.get(name)
  inputs = make_inputs(loss)
  values = call(loss, inputs)
  order = np.random.default_rng(1).permutation(values.shape[0])
  moved = {key: x[order] if x.ndim else x for key, x in inputs.items()}
  valid = inputs.get("valid")
  keep = np.ones(values.shape, bool)
  if valid is not None and valid.shape == values.shape:
    keep = np.asarray(valid)
  # Measured: 1e-6, where a mean is summed in another order.
  np.testing.assert_allclose(
    call(loss, moved)[keep[order]], values[order][keep[order]], rtol=1e-5
  )


@every_loss
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_inputs_stay_finite(name, size):
  """Each float input alone at ±10,000, all of them, and with mixed signs."""
  loss = losses.get(name)
  inputs = _unmasked(loss)
  floats = [key for key, x in inputs.items() if _may_be_extreme(key, x)]
  signs = {
    key: jnp.where(jnp.arange(x.shape[0]) % 2, 1.0, -1.0).reshape(
      (-1,) + (1,) * (x.ndim - 1)
    )
    if x.ndim
    else jnp.ones(())
    for key, x in inputs.items()
  }
  for chosen in [*([key] for key in floats), floats, floats[::2]]:
    for mixed in (False, True):
      extreme = dict(inputs)
      for key in chosen:
        far = jnp.full_like(inputs[key], size)
        far = far * signs[key] if mixed else far
        logp = key.endswith("logp")  # no log-probability is above 0
        extreme[key] = -jnp.abs(far) if logp else far
      assert np.isfinite(call(loss, extreme)).all(), chosen
      for key, grad in float_grads(loss, extreme).items():
        assert np.isfinite(grad).all(), (chosen, key)


def _may_be_extreme(key, x):
  bounded = ("preference", "weight")  # of which 10,000 has no meaning
  return is_float(x) and not key.endswith(bounded)


@every_loss
def test_hyper_parameters_of_any_kind(name):
  loss = losses.get(name)
  inputs = make_inputs(loss)
  expected = call(loss, inputs)
  for key, default in _hyper_parameters(loss).items():
    kinds = [np.float32, np.float64, jnp.float32]
    if float(default).is_integer():
      kinds += [int, np.int64]
    for kind in kinds:
      values = call(loss, inputs, **{key: kind(default)})
      assert values.dtype == jnp.float32
      np.testing.assert_allclose(values, expected, rtol=1e-6)
    traced = jax.jit(lambda x, key=key: call(loss, inputs, **{key: x}))
    # Measured: 2e-6, where a constant would be folded.
    np.testing.assert_allclose(
      traced(float(default)), expected, rtol=2e-5, atol=1e-6, err_msg=key
    )


@every_loss
def test_hyper_parameters_are_keywords_with_defaults(name):
  """By which an objective tells them from what it must supply."""
  for each in inspect.signature(losses.get(name)).parameters.values():
    if each.kind is each.KEYWORD_ONLY:
      assert each.default is not each.empty, each.name
    else:
      assert hasattr(each.annotation, "dim_str"), each.name


@every_loss
def test_the_gradient_is_not_zero(name):
  grads = float_grads(losses.get(name), _unmasked(losses.get(name)))
  assert max(float(jnp.abs(x).max()) for x in grads.values()) > 1e-6


@every_loss
def test_the_docstring_is_whole_and_its_example_runs(name):
  loss = losses.get(name)
  text = inspect.getdoc(loss)
  for part in ("Use: ", "Args:", "Returns:"):
    assert f"\n{part}" in text, part
  finder = doctest.DocTestFinder(recurse=False)
  tests = finder.find(
    inspect.unwrap(loss), name, globs={"jnp": jnp, name: loss}
  )
  results = [doctest.DocTestRunner().run(test) for test in tests]
  assert sum(result.failed for result in results) == 0
  if loss is not losses.sft:  # which says all there is to it
    assert "\nReference:" in text
    assert sum(result.attempted for result in results) > 0
