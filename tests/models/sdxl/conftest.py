"""Tiny random models of diffusers and transformers, and their folders."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any

import diffusers
import pytest
import torch
import transformers

# The shape of SDXL: a level without attention, then stacks of layers. Small:
# that three levels fit together is seen by the names at full size.
SDXL = {
  "block_out_channels": [8, 16],
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
  "transformer_layers_per_block": [1, 2],
  "attention_head_dim": [1, 2],
  "cross_attention_dim": 12,
  "use_linear_projection": True,
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 10 + 6 * 4,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "sample_size": 8,
}
# As in Stable Diffusion 1, with what some distilled models have.
SD1 = {
  "block_out_channels": [8, 16],
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "attention_head_dim": 2,
  "cross_attention_dim": 12,
  "norm_num_groups": 4,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "num_class_embeds": 5,
  "time_cond_proj_dim": 6,
  "layers_per_block": 1,
}
# As in SSD-1B: depths that differ by block, and on the way up.
PRUNED = {
  "block_out_channels": [8, 16],
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
  "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
  "transformer_layers_per_block": [1, [2, 1]],
  "reverse_transformer_layers_per_block": [[1, 1, 2], 1],
  "attention_head_dim": [1, 4],
  "cross_attention_dim": 12,
  "use_linear_projection": True,
  "norm_num_groups": 4,
  "mid_block_type": "UNetMidBlock2D",
  "layers_per_block": [1, 2],
  "class_embed_type": "projection",
  "projection_class_embeddings_input_dim": 7,
}


def randomize(model: Any) -> Any:
  """Weights at 1/sqrt(fan_in), at which every layer matters."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn(weight.shape, generator=generator)
      if "norm" in name and name.endswith("weight"):
        weight.copy_(1.0 + 0.3 * noise)
      elif weight.ndim < 2:
        weight.copy_(0.3 * noise)
      else:
        weight.copy_(noise * weight[0].numel() ** -0.5)
  return model.train(False)


UNETS = {"sdxl": SDXL, "sd1": SD1, "pruned": PRUNED}


@pytest.fixture(scope="session")
def make_unet(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Any]:
  """make_unet(name) -> (UNet2DConditionModel, where it is saved)."""

  @functools.cache
  def make(name: str) -> tuple[Any, pathlib.Path]:
    folder = tmp_path_factory.mktemp(name) / "unet"
    model = randomize(diffusers.UNet2DConditionModel(**UNETS[name]))
    model.save_pretrained(folder)
    return model, folder

  return make


@pytest.fixture(scope="session")
def make_vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
  """(AutoencoderKL, where it is saved)."""
  config = {
    "block_out_channels": [8, 12],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 0.13025,
  }
  folder = tmp_path_factory.mktemp("vae") / "vae"
  model = randomize(diffusers.AutoencoderKL(**config))
  model.save_pretrained(folder)
  return model, folder


@pytest.fixture(scope="session")
def make_text(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Any]:
  """make_text(projected, **config) -> (CLIPTextModel…, where it is saved)."""

  def make(projected: bool, **config: Any) -> tuple[Any, pathlib.Path]:
    sizes = {
      "hidden_size": 16,
      "intermediate_size": 24,
      "num_hidden_layers": 3,
      "num_attention_heads": 2,
      "projection_dim": 10,
    }
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    config = transformers.CLIPTextConfig(**{**sizes, **config})
    model = randomize(getattr(transformers, name)(config))
    folder = tmp_path_factory.mktemp("text") / "text"
    model.save_pretrained(folder)
    return model, folder

  return make


@pytest.fixture
def randomized() -> Callable[[Any], Any]:
  """randomized(model) -> the model with weights at 1/sqrt(fan_in)."""
  return randomize
