"""What a TPU's compiler takes for the parts of SDXL's UNet, with gradients.

Each is compiled for one chip of a v5e that need not be there, as it trains on
two images of 1024² in bfloat16: alone, with libtpu's own tiles and with smaller
ones. Needs the package libtpu (the extra `plan`).

    python benchmarks/tpu_compile.py [--pieces conv-32 feed-forward-32]
"""

import argparse
from collections.abc import Callable
import functools
import json
import os
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from jaxpref import sharding
from jaxpref.models.build import bind, define
from jaxpref.models.layers import Rngs
from jaxpref.models.sdxl import layers, transformer
from jaxpref.models.sdxl.config import sdxl_base
from jaxpref.ops.full_attention import full_attention
from jaxpref.plan.image import SMALL_TILES
from jaxpref.plan.topology import find_devices, stay_on_cpu

_TOPOLOGY = "v5e:2x2"
_IMAGES = 2

Piece = tuple[Callable[..., Any], Any]
"""A function and the shapes of its arguments, of which the first trains."""


def main() -> None:
  pieces = _pieces()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--pieces", nargs="*", choices=list(pieces), default=list(pieces)
  )
  ((option, small),) = SMALL_TILES.items()
  parser.add_argument(
    "--tiles", nargs="*", default=["1.0", small], help=f"values of {option}"
  )
  given = parser.parse_args()
  stay_on_cpu(_TOPOLOGY)
  mesh = sharding.make_mesh(1, 1, 1, devices=find_devices(_TOPOLOGY)[:1])
  for name in given.pieces:
    for tiles in given.tiles:
      row = {"piece": name, "tiles": tiles}
      row |= _compile(*pieces[name](), mesh, {option: tiles})
      print(json.dumps(row), flush=True)


def _pieces() -> dict[str, Callable[[], Piece]]:
  """By the side of the image in latents, and what makes each."""
  wide = {128: 320, 64: 640, 32: 1280}
  found: dict[str, Callable[[], Piece]] = {}
  for side, channels in wide.items():
    image = _array(side, side, channels)
    tokens = _array(side * side, channels)
    conv = functools.partial(
      layers.Conv, ("embed", channels), ("mlp", channels)
    )
    norm = functools.partial(layers.GroupNorm, channels, groups=32, eps=1e-5)
    found[f"conv-{side}"] = functools.partial(_layer, conv, image)
    found[f"norm-{side}"] = functools.partial(_layer, norm, image)
    if side < 128:
      heads = channels // 64
      feed = functools.partial(transformer.FeedForward, channels)
      block = functools.partial(
        transformer.Block, channels, heads=heads, context=2048
      )
      found[f"attention-{side}"] = functools.partial(_attention, side, heads)
      found[f"feed-forward-{side}"] = functools.partial(_layer, feed, tokens)
      found[f"block-{side}"] = functools.partial(
        _layer, block, tokens, _array(77, 2048)
      )
  found["unet"] = _unet
  return found


def _layer(make: Callable[..., nnx.Module], *inputs: Any) -> Piece:
  dtypes = layers.as_dtypes("bfloat16", "float32")
  model = nnx.eval_shape(lambda: make(rngs=Rngs(params=0), dtypes=dtypes))
  graphdef, params = nnx.split(model)
  call = lambda params, *x: nnx.merge(graphdef, params)(*x)
  return call, (nnx.to_pure_dict(params), *inputs)


def _attention(side: int, heads: int) -> Piece:
  array = _array(side * side, heads, 64)
  return lambda qkv: full_attention(*qkv), ((array,) * 3,)


def _unet() -> Piece:
  definition = define(sdxl_base(), dtype="bfloat16")
  call = lambda params, *x: bind(definition, params)(*x)
  single = functools.partial(_array, dtype="float32")
  added = {"text_embeds": single(1280), "time_ids": single(6)}
  inputs = single(128, 128, 4), single(), single(77, 2048), added
  return call, (definition.shapes, *inputs)


def _array(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((_IMAGES, *sizes), jnp.dtype(dtype))


def _compile(
  call: Callable[..., Any], shapes: Any, mesh: Any, options: dict[str, str]
) -> dict[str, Any]:
  def loss(*args: Any) -> jax.Array:
    return jnp.sum(call(*args).astype(jnp.float32) ** 2)

  # Of two arguments the input's gradient is asked for too: in a model it goes
  # on to the layer before.
  wanted = (0, 1) if len(shapes) > 1 else 0
  everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), shapes)
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss, argnums=wanted)).lower(
      *sharding.placed(shapes, everywhere)
    )
    began, used = time.perf_counter(), time.process_time()
    compiled = lowered.compile(compiler_options=options)
  told = compiled.memory_analysis()
  return {
    "wall": round(time.perf_counter() - began, 1),
    "cpu": round(time.process_time() - used, 1),
    "program MiB": round(told.generated_code_size_in_bytes / 2**20, 2),
    "temporaries MiB": round(told.temp_size_in_bytes / 2**20, 2),
    "arguments MiB": round(told.argument_size_in_bytes / 2**20, 2),
  }


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  main()
