"""What losses of rewards and policies are held against: samples, TRL, NumPy."""

from collections.abc import Callable, Mapping, Sequence
import doctest
import functools
import inspect
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_rl.json"
_TRL = json.loads(_GOLDEN.read_text())


def padded(rows: Sequence[Sequence[float]], fill: float = np.nan) -> jax.Array:
  """Rows of different lengths as one array, filled up on the right."""
  longest = max(map(len, rows))
  filled = [[*row, *[fill] * (longest - len(row))] for row in rows]
  return jnp.array(filled, jnp.float32)


# Four samples of one prompt. Padding is NaN: it must not matter.
NEW = padded([[-0.5, -1, -0.7], [-0.9, -0.4], [-1.2, -0.6, -0.3], [-0.8]])
OLD = padded([[-0.7, -1.1, -0.5], [-0.6, -0.6], [-1, -0.6, -0.8], [-1.3]])
REF = padded([[-0.6, -1.2, -0.9], [-0.8, -0.5], [-1.1, -0.9, -0.4], [-0.9]])
MASK = ~jnp.isnan(NEW)
REWARD = jnp.array([1.0, 0.0, 0.5, 1.0])
ALL = jnp.ones(4, bool)


def trl_cases(name: str, **options: Any) -> pytest.MarkDecorator:
  """Parametrises `case` by what TRL was run on under this name."""
  cases = [
    case
    for case in _TRL
    if case["name"] == name
    and all(case["options"][key] == value for key, value in options.items())
  ]
  assert cases
  return pytest.mark.parametrize("case", cases, ids=range(len(cases)))


def assert_is_trls(
  case: Any, loss: Callable[..., Any], inputs: Sequence[str]
) -> None:
  """The batch's loss, which `loss` reduces, and its gradient by token."""
  arrays = {
    key: jnp.asarray(case[key], bool if key == "mask" else jnp.float32)
    for key in inputs
  }
  of_policy = lambda logp: loss(**(arrays | {"token_logp": logp}))
  value, grad = jax.value_and_grad(of_policy)(arrays["token_logp"])
  # Measured: 3e-7 of the value, 2e-7 of the largest gradient.
  np.testing.assert_allclose(value, case["loss"], rtol=5e-6, atol=1e-7)
  np.testing.assert_allclose(grad, case["grad"], rtol=1e-5, atol=1e-7)


def close(ours: Any, theirs: Any, rtol: float = 1e-5, **kwargs: Any) -> None:
  """Equal to the digits that are printed."""
  kwargs.setdefault("atol", 1e-7)
  np.testing.assert_allclose(ours, theirs, rtol=rtol, **kwargs)


def assert_is_numpys(
  function: Callable[..., Any],
  reference: Callable[..., Any],
  inputs: Mapping[str, Any],
  *,
  by: Sequence[str] | None = None,
  **options: Any,
) -> None:
  """Values, and gradients against central differences, in float64.

  `by` names the inputs to differentiate by; all that are floats without it.
  """
  ours = {key: _array(x) for key, x in inputs.items()}
  exact = {
    key: np.asarray(x, np.float64 if x.dtype == jnp.float32 else x.dtype)
    for key, x in ours.items()
  }
  values = reference(*exact.values(), **options)
  weight = np.random.default_rng(9).uniform(0.5, 1.5, np.shape(values))
  # Measured: 2e-6 of the largest value and gradient, by float32.
  loss = functools.partial(function, **options)
  _near(loss(*ours.values()), values, "value")

  def total(floats):
    given = (ours | floats).values()
    return jnp.sum(jnp.asarray(weight, jnp.float32) * loss(*given))

  by = by or [key for key, x in ours.items() if x.dtype == jnp.float32]
  grads = jax.jit(jax.grad(total))({key: ours[key] for key in by})
  for key in by:
    slopes = np.zeros_like(exact[key])
    for index in np.ndindex(slopes.shape):
      step = np.zeros_like(slopes)
      step[index] = 1e-6
      sides = [
        np.sum(weight * reference(*(exact | {key: x}).values(), **options))
        for x in (exact[key] + step, exact[key] - step)
      ]
      slopes[index] = (sides[0] - sides[1]) / 2e-6
    _near(grads[key], slopes, key)


def assert_examples_run(*functions: Callable[..., Any]) -> None:
  """Examples of docstrings of functions that are no losses of their own."""
  finder = doctest.DocTestFinder(recurse=False)
  for each in functions:
    name = each.__name__
    tests = finder.find(
      inspect.unwrap(each), name, globs={"jnp": jnp, name: each}
    )
    results = [doctest.DocTestRunner().run(test) for test in tests]
    assert sum(result.failed for result in results) == 0, name
    assert sum(result.attempted for result in results) > 0, name


def _near(ours: Any, theirs: Any, name: str) -> None:
  scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
  np.testing.assert_allclose(
    ours, theirs, rtol=1e-5, atol=5e-6 * scale, err_msg=name
  )


def _array(x: Any) -> jax.Array:
  x = np.asarray(x)
  return jnp.asarray(x, np.float32 if x.dtype.kind == "f" else x.dtype)
