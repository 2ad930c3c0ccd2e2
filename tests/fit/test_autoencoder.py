"""A few steps of the small autoencoder."""

import jax
import numpy as np
import pytest

from jaxpref.data.shapes import SIDE, draw_shapes
from jaxpref.fit.autoencoder import train_autoencoder
from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.small import small_vae


def test_it_learns_to_reconstruct():
  pixels = np.stack([each.pixels for each in draw_shapes(16, 0)])
  vae = define(small_vae(SIDE), dtype="float32", remat="")
  errors = []
  for steps in (1, 20):
    trained, params = train_autoencoder(vae, pixels, steps=steps, batch_size=8)

    @jax.jit
    def reconstruct(params, images):
      model = bind(vae, params)
      mean = model.encode(images).mean
      return mean, model.decode(mean)

    images = pixels.astype(np.float32) / 127.5 - 1.0
    latents, found = reconstruct(params, images)
    errors.append(float(np.mean((found - images) ** 2)))
    spread = float(np.std(np.asarray(latents)))
    assert trained.config.scaling_factor == pytest.approx(1 / spread, rel=1e-4)
  assert errors[1] < 0.7 * errors[0]
