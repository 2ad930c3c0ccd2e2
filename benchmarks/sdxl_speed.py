"""SDXL's UNet and autoencoder beside diffusers', on this machine's CPU.

    python benchmarks/sdxl_speed.py [--width 160] [--latents 16 32] [--repeat 3]

Both have the same random weights and inputs, in float32, and run in turn in one
process: the UNet forward, the UNet forward and backward, and the autoencoder's
encoder, each at the given sizes. `--width 320` is SDXL's own UNet, whose
gradients take 20 GB for each of the two; 160 is half as wide, all else alike.
One JSON object goes to stdout: seconds of both, and ours by theirs, of the
fastest repetition each; and how far the results are apart.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxpref.models.build import Definition, bind, define, init_params
from jaxpref.models.sdxl.config import UNetConfig, sdxl_base
from jaxpref.models.sdxl.parts import save_part
from jaxpref.models.sdxl.vae_config import sdxl_vae


def main() -> None:
  flags = _parse()
  torch.set_num_threads(os.cpu_count() or 1)
  report: dict[str, Any] = {
    "width": flags.width,
    "cpus": os.cpu_count(),
    "jax": jax.__version__,
    "torch": torch.__version__,
  }
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    definition, params = _saved(unet_config(flags.width), place / "unet")
    theirs = diffusers.UNet2DConditionModel.from_pretrained(place / "unet")
    for size in flags.latents:
      report |= compare_unet(definition, params, theirs, size, flags.repeat)
    del params, theirs
    definition, params = _saved(sdxl_vae(), place / "vae")
    theirs = diffusers.AutoencoderKL.from_pretrained(place / "vae")
    encode = jax.jit(lambda params, x: bind(definition, params).encode(x)[0])
    for size in flags.latents:
      found = compare_encoder(
        functools.partial(encode, params), theirs, 8 * size, flags.repeat
      )
      report[f"encode {8 * size} pixels"] = found
  print(json.dumps(report, indent=1))


def unet_config(width: int) -> UNetConfig:
  """SDXL's, of another width; heads stay 64 wide."""
  shape = sdxl_base()
  channels = tuple(width * factor for factor in (1, 2, 4))
  return dataclasses.replace(
    shape,
    block_out_channels=channels,
    attention_head_dim=tuple(max(1, size // 64) for size in channels),
  )


def compare_unet(
  definition: Definition, params: Any, theirs: Any, size: int, repeat: int
) -> dict[str, Any]:
  """Forward, and forward with backward, of one image."""
  latents, context = _draw(0, 1, size, size, 4), _draw(1, 1, 77, 2048)
  time_ = np.array([501.0], np.float32)
  added = {
    "text_embeds": _draw(2, 1, 1280),
    "time_ids": np.array([[512, 512, 0, 0, 512, 512]], np.float32),
  }
  inputs = (latents, time_, context, added)

  def predict(params: Any, *inputs: Any) -> jax.Array:
    return bind(definition, params)(*inputs)

  def loss(params: Any, *inputs: Any) -> jax.Array:
    return jnp.mean(predict(params, *inputs) ** 2)

  def ask() -> torch.Tensor:
    return theirs(
      _nchw(latents),
      torch.tensor(time_),
      torch.tensor(context),
      added_cond_kwargs={k: torch.tensor(v) for k, v in added.items()},
    ).sample

  def backward() -> np.ndarray:
    theirs.zero_grad()
    (ask() ** 2).mean().backward()
    return theirs.conv_in.bias.grad.numpy()

  forward, gradient = jax.jit(predict), jax.jit(jax.grad(loss))
  found = {}
  with torch.no_grad():
    found[f"forward {size} latents"] = in_turn(
      lambda: forward(params, *inputs), lambda: _nhwc(ask()), repeat
    )
  found[f"forward and backward {size} latents"] = in_turn(
    lambda: gradient(params, *inputs)["conv_in"]["bias"], backward, repeat
  )
  return found


def compare_encoder(
  encode: Callable[..., Any], theirs: Any, side: int, repeat: int
) -> dict[str, float]:
  """The means of the latents of one image."""
  pixels = _draw(0, 1, side, side, 3)
  with torch.no_grad():
    return in_turn(
      lambda: encode(pixels),
      lambda: _nhwc(theirs.encode(_nchw(pixels)).latent_dist.mean),
      repeat,
    )


def in_turn(
  ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int
) -> dict[str, float]:
  """The fastest of both, after one run each that is not counted."""
  seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
  results = {}
  for number in range(repeat + 1):
    for name, call in (("ours", ours), ("theirs", theirs)):
      began = time.perf_counter()
      results[name] = np.asarray(jax.block_until_ready(call()))
      if number:
        seconds[name].append(time.perf_counter() - began)
        print(name, seconds[name][-1], file=sys.stderr)
  one, other = (min(each) for each in seconds.values())
  expected = results["theirs"]
  apart = np.abs(results["ours"] - expected).max() / np.abs(expected).max()
  return {
    "ours": round(one, 3),
    "theirs": round(other, 3),
    "ours by theirs": round(one / other, 3),
    "apart": float(apart),
  }


def _saved(config: Any, folder: pathlib.Path) -> tuple[Definition, Any]:
  definition = define(config, dtype="float32", remat="")
  params = init_params(definition, jax.random.key(0))
  save_part(folder, definition, params)
  return definition, params


def _draw(seed: int, *sizes: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(sizes, np.float32)


def _nchw(x: np.ndarray) -> torch.Tensor:
  return torch.tensor(x).permute(0, 3, 1, 2)


def _nhwc(x: torch.Tensor) -> np.ndarray:
  return x.permute(0, 2, 3, 1).numpy()


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--width", type=int, default=160)
  parser.add_argument("--latents", type=int, nargs="+", default=[16, 32])
  parser.add_argument("--repeat", type=int, default=3)
  return parser.parse_args()


if __name__ == "__main__":
  main()
