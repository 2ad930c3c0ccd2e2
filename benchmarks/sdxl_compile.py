"""How long XLA compiles SDXL's UNet, forward and backward, for this machine.

Nothing is allocated: parameters are shapes. The unscanned program runs each
transformer layer by itself and is only lowered, for its size.

    python benchmarks/sdxl_compile.py [--latents 64] [--images 1]
"""

import argparse
from collections.abc import Callable
import json
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jaxpref.models.build import Definition, bind, define
from jaxpref.models.sdxl import transformer
from jaxpref.models.sdxl.config import sdxl_base


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--latents", type=int, default=64)
  parser.add_argument("--images", type=int, default=1)
  given = parser.parse_args()
  seconds = _timer()
  definition = define(sdxl_base(), dtype="float32")
  report: dict[str, Any] = {"define": seconds()}
  args = (definition.shapes, *inputs(given.images, given.latents))
  lowered = jax.jit(jax.grad(_loss(definition))).lower(*args)
  report |= {"trace and lower": seconds(), "lines": _lines(lowered)}
  lowered.compile()
  report["compile"] = seconds()
  with mock.patch.object(transformer, "scan_layers", _unrolled):
    unscanned = jax.jit(jax.grad(_loss(definition))).lower(*args)
  report["lines unscanned"] = _lines(unscanned)
  print(json.dumps(report))


def inputs(images: int, latents: int) -> tuple[Any, ...]:
  """Shapes of what SDXL's UNet takes."""
  shape = lambda *sizes: jax.ShapeDtypeStruct((images, *sizes), jnp.float32)
  added = {"text_embeds": shape(1280), "time_ids": shape(6)}
  return shape(latents, latents, 4), shape(), shape(77, 2048), added


def _loss(definition: Definition) -> Callable[..., jax.Array]:
  def loss(params: Any, *args: Any) -> jax.Array:
    return jnp.sum(bind(definition, params)(*args) ** 2)

  return loss


def _unrolled(
  stack: Any, call: Any, x: Any, per_layer: Any = None, *, remat: str
) -> tuple[Any, Any]:
  from flax import nnx

  graphdef, params = nnx.split(stack)
  policy = getattr(jax.checkpoint_policies, remat)
  for layer in range(jax.tree.leaves(params)[0].shape[0]):
    own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params)
    step = lambda x, own: call(nnx.merge(graphdef, own), x, None)[0]
    x = jax.checkpoint(step, policy=policy)(x, own)
  return x, per_layer


def _lines(lowered: Any) -> int:
  return len(lowered.as_text().splitlines())


def _timer() -> Callable[[], dict[str, float]]:
  last = [time.perf_counter(), time.process_time()]

  def seconds() -> dict[str, float]:
    now = [time.perf_counter(), time.process_time()]
    passed = {"wall": now[0] - last[0], "cpu": now[1] - last[1]}
    last[:] = now
    return {name: round(value, 1) for name, value in passed.items()}

  return seconds


if __name__ == "__main__":
  main()
