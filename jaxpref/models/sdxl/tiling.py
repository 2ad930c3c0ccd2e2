"""The autoencoder on large images, a tile at a time.

The device holds one tile, the host the image. Tiles overlap by a quarter and
are blended linearly; each normalises by its own statistics, so that the result
differs a little from the whole image's, as it does in diffusers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxpref.models.sdxl.vae import Moments
from jaxpref.models.sdxl.vae_config import VaeConfig

_OVERLAP = 0.25


def tiled_encode(
  encode: Callable[[np.ndarray], Moments],
  pixels: np.ndarray,
  config: VaeConfig,
) -> Moments:
  """Moments of images [images, Y, X, 3] of any size, as NumPy arrays.

  `encode` (compiled) sees tiles of at most `config.sample_size` a side.
  """
  size = config.sample_size
  run = lambda tile: np.concatenate(encode(tile), axis=-1)
  both = _tiled(run, pixels, size, size // config.factor)
  mean, logvar = np.split(both, 2, axis=-1)
  return Moments(mean, logvar)


def tiled_decode(
  decode: Callable[[np.ndarray], Any],
  latents: np.ndarray,
  config: VaeConfig,
) -> np.ndarray:
  """Pixels [images, Y, X, 3] of latents of any size; `decode` sees tiles."""
  size = config.sample_size
  return _tiled(decode, latents, size // config.factor, size)


def _tiled(
  run: Callable[[np.ndarray], Any], x: np.ndarray, size: int, out: int
) -> np.ndarray:
  """`run` on tiles of `size`, whose outputs have `out` rows and columns."""
  step, blend = int(size * (1 - _OVERLAP)), int(out * _OVERLAP)
  kept = out - blend
  rows: list[list[np.ndarray]] = []
  for top in range(0, x.shape[1], step):
    row: list[np.ndarray] = []
    for left in range(0, x.shape[2], step):
      tile = np.array(run(x[:, top : top + size, left : left + size]))
      if rows:
        _blend(rows[-1][len(row)], tile, blend, axis=1)
      if row:
        _blend(row[-1], tile, blend, axis=2)
      row.append(tile)
    rows.append(row)
  bands = [
    np.concatenate([tile[:, :kept, :kept] for tile in row], axis=2)
    for row in rows
  ]
  return np.concatenate(bands, axis=1)


def _blend(
  before: np.ndarray, tile: np.ndarray, extent: int, *, axis: int
) -> None:
  """Mixes the last rows or columns of one tile into the next one's first."""
  before, tile = (np.moveaxis(each, axis, 0) for each in (before, tile))
  extent = min(len(before), len(tile), extent)
  ramp = np.arange(extent, dtype=tile.dtype) / max(extent, 1)
  ramp = ramp.reshape((extent,) + (1,) * (tile.ndim - 1)).astype(tile.dtype)
  end = before[len(before) - extent :]
  tile[:extent] = end * (1 - ramp) + tile[:extent] * ramp
