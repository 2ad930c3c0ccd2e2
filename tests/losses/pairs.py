"""What losses of pairs are held against: known pairs, TRL and NumPy."""

from collections.abc import Callable, Mapping
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import losses

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_dpo.json"
_TRL = json.loads(_GOLDEN.read_text())

# Two pairs of known token log-probs: sums over 3 and 4, and 4 and 2 tokens.
KNOWN = {
  "chosen_logp": [-2.0, -3.0],
  "rejected_logp": [-5.0, -2.4],
  "chosen_logratio": [0.3, -0.2],
  "rejected_logratio": [-2.4, 1.5],
  "chosen_mean_logratio": [0.3 / 3, -0.2 / 4],
  "rejected_mean_logratio": [-2.4 / 4, 1.5 / 2],
  "valid": [True, True],
}


def of_known(name: str, given: Mapping[str, Any], **options: Any) -> jax.Array:
  """A loss of the two known pairs, and of what is `given` beside them."""
  loss = losses.get(name)
  inputs = [(KNOWN | given)[key] for key in losses.inputs(loss)]
  return loss(*map(_array, inputs), **options)


def at_zero(name: str, **options: Any) -> jax.Array:
  """A loss where policy and reference agree."""
  loss = losses.get(name)
  return loss(*[jnp.zeros(3)] * len(losses.inputs(loss)), **options)


def trl_cases(*names: str, option: str = "beta") -> pytest.MarkDecorator:
  """Parametrises `case` by what TRL was run on, with an option, if given."""
  cases = [x for x in _TRL if x["name"] in names and option in x["options"]]
  cases = [x for x in cases if "far" not in x["options"]]
  ids = [f"{x['name']}-{list(x['options'].values())}" for x in cases]
  assert {x["name"] for x in cases} == set(names)
  return pytest.mark.parametrize("case", cases, ids=ids)


def trl_case(name: str, **options: Any) -> Any:
  """The first case of exactly these options."""
  return next(x for x in _TRL if x["name"] == name and x["options"] == options)


def of_trl_inputs(name: str, case: Any, **options: Any) -> Any:
  """Our values, and gradients by a token's log-prob, of what TRL was given."""
  loss = losses.get(name)
  lengths = _array(case["lengths"]).astype(jnp.float32)

  def total(logp, logratio):
    mean = logratio / lengths
    known = {"valid": jnp.ones(mean.shape[1:], bool)}
    for side, word in enumerate(("chosen", "rejected")):
      known[f"{word}_logp"] = logp[side]
      known[f"{word}_logratio"] = logratio[side]
      known[f"{word}_mean_logratio"] = mean[side]
    values = loss(*(known[key] for key in losses.inputs(loss)), **options)
    return jnp.sum(values), values

  inputs = _array(case["logp"]), _array(case["logratio"])
  grads, values = jax.grad(total, (0, 1), has_aux=True)(*inputs)
  return values, sum(grads)  # the policy's log-prob stands in both


def assert_is_trls(name: str, case: Any, **options: Any) -> None:
  """Values and gradients; the mean, where TRL has the mean alone."""
  values, grads = of_trl_inputs(name, case, **options)
  if len(case["loss"]) == 1:
    values = jnp.mean(values, keepdims=True)
  # Measured: 9e-7 of the value, where TRL has float32 too, else 7e-7; and of
  # the largest gradient 3e-7, of discopop 1e-6.
  np.testing.assert_allclose(values, case["loss"], rtol=5e-6, atol=1e-7)
  largest = np.abs(case["grads"]).max()
  np.testing.assert_allclose(
    grads, case["grads"], rtol=5e-6, atol=2e-6 * largest
  )


def assert_is_numpys(
  name: str,
  reference: Callable[..., Any],
  inputs: Mapping[str, Any],
  **options: Any,
) -> None:
  """Values, and gradients against central differences, in float64."""
  loss = losses.get(name)
  assert list(inputs) == losses.inputs(loss)
  exact = {
    key: np.asarray(x, np.float32).astype(np.float64)
    for key, x in inputs.items()
  }
  ours = [_array(x) for x in exact.values()]
  total = lambda *x: jnp.sum(loss(*x, **options))
  np.testing.assert_allclose(
    loss(*ours, **options),
    reference(*exact.values(), **options),
    rtol=2e-6,
    atol=1e-6,
  )
  grads = jax.grad(total, range(len(ours)))(*ours)
  for (key, x), grad in zip(exact.items(), grads):
    step = 1e-5
    sides = [
      reference(*(exact | {key: x + by}).values(), **options)
      for by in (step, -step)
    ]
    slope = (sides[0] - sides[1]) / (2 * step)
    # Measured: 3e-7 of the largest.
    np.testing.assert_allclose(
      grad,
      slope,
      rtol=2e-6,
      atol=2e-6 * max(0.1, np.abs(slope).max()),
      err_msg=key,
    )


def random_pairs(seed: int, *names: str, size: float = 5.0) -> dict[str, Any]:
  """Log-ratios, scores and preferences under these names."""
  rng = np.random.default_rng(seed)
  made = {}
  for name in names:
    x = rng.normal(scale=size, size=9)
    made[name] = rng.uniform(0.02, 0.98, 9) if name == "preference" else x
  return made


def softplus(x: Any) -> Any:
  """log(1 + e^x), by NumPy."""
  return np.logaddexp(0.0, x)


def _array(x: Any) -> jax.Array:
  x = np.asarray(x)
  return jnp.asarray(x, x.dtype if x.dtype == bool else np.float32)
