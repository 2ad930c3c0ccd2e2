"""The autoencoder against diffusers' AutoencoderKL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.parts import load_part, read_part
from jaxpref.models.sdxl.tiling import tiled_decode, tiled_encode
from jaxpref.models.sdxl.vae import Moments

PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3)).astype("f4")
LATENTS = np.random.default_rng(1).normal(size=(2, 8, 6, 4)).astype("f4")


def _load(folder, dtype="float32"):
  definition = define(read_part(folder), dtype=dtype)
  return definition, load_part(folder, definition)


@functools.partial(jax.jit, static_argnums=0)
def _both(definition, params, pixels, latents):
  vae = bind(definition[0], params)
  return vae.encode(pixels), vae.decode(latents)


class _Static(tuple):
  __hash__ = object.__hash__
  __eq__ = object.__eq__


def _torch(x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def _numpy(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def test_moments_and_pixels_are_diffusers(make_vae):
  model, folder = make_vae
  definition, params = _load(folder)
  static = _Static([definition])
  moments, pixels = _both(static, params, PIXELS, LATENTS)
  with torch.no_grad():
    theirs = model.encode(_torch(PIXELS)).latent_dist
    decoded = _numpy(model.decode(_torch(LATENTS)).sample)
  # Measured: 1.4e-6 at most, with values of up to 3.
  np.testing.assert_allclose(moments.mean, _numpy(theirs.mean), atol=1e-4)
  np.testing.assert_allclose(moments.logvar, _numpy(theirs.logvar), atol=1e-4)
  np.testing.assert_allclose(pixels, decoded, atol=1e-4)
  # Queries taken for keys would be seen.
  middle = params["decoder"]["mid_block"]["attentions"]["0"]
  middle["to_q"], middle["to_k"] = middle["to_k"], middle["to_q"]
  _, wrong = _both(static, params, PIXELS, LATENTS)
  assert np.abs(wrong - decoded).max() > 1e-3


def test_tiles_are_blended_as_diffusers_does(make_vae):
  model, folder = make_vae
  config = read_part(folder)
  pixels = np.random.default_rng(2).uniform(-1, 1, (1, 40, 28, 3))
  latents = np.random.default_rng(3).normal(size=(1, 18, 11, 4))
  pixels, latents = pixels.astype("f4"), latents.astype("f4")
  model.enable_tiling()
  with torch.no_grad():
    theirs = _numpy(model.encode(_torch(pixels)).latent_dist.mean)
    decoded = _numpy(model.decode(_torch(latents)).sample)
  model.disable_tiling()

  # What is tested is the order of tiles, not the model: torch runs it.
  def encode(tile):
    with torch.no_grad():
      both = model.quant_conv(model.encoder(_torch(tile)))
    mean, logvar = np.split(_numpy(both), 2, axis=-1)
    return Moments(mean, np.clip(logvar, -30.0, 20.0))

  def decode(tile):
    with torch.no_grad():
      return _numpy(model.decode(_torch(tile)).sample)

  ours = tiled_encode(encode, pixels, config)
  np.testing.assert_allclose(ours.mean, theirs, atol=1e-5)
  ours = tiled_decode(decode, latents, config)
  np.testing.assert_allclose(ours, decoded, atol=1e-5)


def test_it_computes_in_float32_where_16_bits_overflow(make_vae):
  _, folder = make_vae
  config = read_part(folder)
  assert config.force_upcast
  model = define(config, dtype="float16", param_dtype="float16")
  shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float16)
  encode = lambda params, x: bind(model, params).encoder(x)
  assert jax.eval_shape(encode, model.shapes, shape).dtype == jnp.float32


def test_scaling_is_undone(make_vae):
  _, folder = make_vae
  definition = define(read_part(folder), dtype="float32")
  vae = bind(definition, definition.shapes)
  scaled = vae.scale(jnp.asarray(LATENTS))
  np.testing.assert_allclose(scaled, 0.13025 * LATENTS, rtol=1e-6)
  np.testing.assert_allclose(vae.unscale(scaled), LATENTS, rtol=1e-6)


def test_names_of_old_files_are_read(make_vae, tmp_path):
  _, folder = make_vae
  definition, params = _load(folder)
  file = "diffusion_pytorch_model.safetensors"
  old = {"to_q": "query", "to_k": "key", "to_v": "value"}
  tensors = {}
  for name, tensor in safetensors.numpy.load_file(folder / file).items():
    for new, before in {**old, "to_out.0": "proj_attn"}.items():
      name = name.replace(f".{new}.", f".{before}.")
    tensors[name] = tensor
  assert any(".proj_attn." in name for name in tensors)
  safetensors.numpy.save_file(tensors, tmp_path / file)
  again = load_part(tmp_path, definition)
  jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("size", [(30, 16), (16, 12)])
def test_tiles_cover_any_size(make_vae, size):
  config = read_part(make_vae[1])
  latents = np.ones((1, *size, 4))
  double = lambda x: np.ones((1, 2 * x.shape[1], 2 * x.shape[2], 3))
  pixels = tiled_decode(double, latents, config)
  np.testing.assert_array_equal(
    pixels, np.ones((1, 2 * size[0], 2 * size[1], 3))
  )
