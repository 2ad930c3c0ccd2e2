"""Published models by their shapes: sizes, names of tensors, divisibility."""

import math

import diffusers
import jax
import pytest
import torch
import transformers

from jaxpref import sharding
from jaxpref.models.build import define
from jaxpref.models.sdxl.clip_config import clip_l, open_clip_bigg
from jaxpref.models.sdxl.config import sdxl_base
from jaxpref.models.sdxl.vae_config import sdxl_vae
from jaxpref.models.weights import at


def _torch(config):
  """The torch module of the same config, without arrays."""
  given = config.to_json()
  with torch.device("meta"):
    if "_class_name" in given:
      return getattr(diffusers, given.pop("_class_name"))(**given)
    kind = getattr(transformers, given.pop("architectures")[0])
    return kind(transformers.CLIPTextConfig(**given))


@pytest.mark.parametrize(
  ("config", "parameters"),
  [
    (sdxl_base(), 2_567_463_684),
    (sdxl_vae(), 83_653_863),
    (clip_l(), 123_060_480),
    (open_clip_bigg(), 694_659_840),
  ],
  ids=["unet", "vae", "clip_l", "bigg"],
)
def test_sizes_and_names_are_the_published_ones(config, parameters):
  definition = define(config, dtype="bfloat16")
  leaves = jax.tree.leaves(definition.shapes)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
  ours = {}
  for weight in definition.table:
    layers = at(definition.shapes, weight.path).shape[0]
    for layer in range(layers if weight.stacked else 1):
      ours[weight.name.format(layer)] = weight.shape
  theirs = {k: tuple(v.shape) for k, v in _torch(config).state_dict().items()}
  if "embeddings.token_embedding.weight" in theirs:  # as transformers 5 has it
    theirs = {f"text_model.{name}": shape for name, shape in theirs.items()}
  assert ours == theirs
  # Every dimension divides what a pod of this mesh cuts it into.
  mesh = sharding.make_mesh(1, 4, 2)
  sharding.param_shardings(mesh, definition.shapes, definition.axes)
