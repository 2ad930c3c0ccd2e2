"""Values and gradients of losses against TRL's and against float64 NumPy."""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_zoo.json"
_TRL = json.loads(_GOLDEN.read_text())


def trl_zoo(*names: str) -> pytest.MarkDecorator:
  """Parametrises `case` by what TRL was run on under these names."""
  cases = [x for x in _TRL if x["name"] in names]
  assert {x["name"] for x in cases} == set(names)
  ids = [f"{x['name']}{list(x['options'].values())}" for x in cases]
  return pytest.mark.parametrize("case", cases, ids=ids)


def trl_whole(name: str) -> Any:
  """TRL's loss of a whole batch, and the token log-probs it came from."""
  case = next(x for x in _TRL if x["name"] == f"whole {name}")
  return {key: np.asarray(x) for key, x in case.items() if key != "name"}


def array(x: Any) -> jax.Array:
  """Float32, unless it is boolean or of integers."""
  x = np.asarray(x)
  return jnp.asarray(x, x.dtype if x.dtype.kind in "bi" else np.float32)


def assert_close(
  function: Callable[..., jax.Array],
  inputs: Mapping[str, Any],
  values: Any,
  grads: Mapping[str, Any],
  rtol: float = 2e-5,
) -> None:
  """`function(**inputs)` and the gradients of its sum, under jit."""
  inputs = {key: array(x) for key, x in inputs.items()}
  wrt = {key: inputs[key] for key in grads}

  def total(given):
    values = function(**(inputs | given))
    return jnp.sum(values), values

  ours, aux = jax.jit(jax.grad(total, has_aux=True))(wrt)
  # Measured: 5e-7 of the value, 2e-6 of the largest gradient, of float32.
  np.testing.assert_allclose(aux, values, rtol=1e-5, atol=1e-6)
  largest = max(np.abs(x).max() for x in grads.values())
  for key, expected in grads.items():
    np.testing.assert_allclose(
      ours[key], expected, rtol=rtol, atol=1e-5 * largest, err_msg=key
    )


def assert_is_numpys(
  function: Callable[..., jax.Array],
  reference: Callable[..., Any],
  inputs: Mapping[str, Any],
  wrt: Sequence[str],
  rtol: float = 2e-5,
) -> None:
  """Against a float64 reference, and its central differences by `wrt`."""
  exact = {key: np.asarray(array(x)) for key, x in inputs.items()}
  exact = {
    key: x.astype(np.float64) if x.dtype == np.float32 else x
    for key, x in exact.items()
  }
  grads = {}
  for key in wrt:
    x = exact[key]
    grad = np.zeros_like(x)
    step = 1e-6 * np.abs(x).max()
    for at in np.ndindex(x.shape):
      sides = []
      for by in (step, -step):
        moved = x.copy()
        moved[at] += by
        sides.append(np.sum(reference(**(exact | {key: moved}))))
      grad[at] = (sides[0] - sides[1]) / (2 * step)
    grads[key] = grad
  assert_close(function, exact, reference(**exact), grads, rtol)


def softplus(x: Any) -> Any:
  """log(1 + e^x), by NumPy."""
  return np.logaddexp(0.0, x)
