"""A tiny CLIP that rates images."""

from collections.abc import Callable
import pathlib
from typing import Any

import pytest

_SIDE = 12
_VISION = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": _SIDE,
  "patch_size": 4,
}
_TEXT = {
  "hidden_size": 8,
  "intermediate_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "bos_token_id": 49406,
  "eos_token_id": 49407,
}


@pytest.fixture(scope="session")
def vision() -> dict[str, Any]:
  """Of a vision tower's config."""
  return _VISION


@pytest.fixture(scope="session")
def randomized() -> Callable[[Any], Any]:
  """randomized(model) -> with weights that keep the size of what they get."""
  import torch

  def make(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
      width = parameter.shape[-1] if parameter.ndim else 1
      torch.nn.init.normal_(parameter, std=0.5 * width**-0.5)
    return model.train(False)

  return make


@pytest.fixture(scope="session")
def write_processor() -> Callable[[pathlib.Path], Any]:
  """write_processor(folder) -> what makes images ready, saved there."""
  import transformers

  def write(folder: pathlib.Path) -> Any:
    processor = transformers.CLIPImageProcessor(
      size={"shortest_edge": _SIDE},
      crop_size={"height": _SIDE, "width": _SIDE},
    )
    processor.save_pretrained(folder)
    return processor

  return write


@pytest.fixture(scope="session")
def clip(
  shared: pathlib.Path,
  tmp_path_factory: pytest.TempPathFactory,
  randomized: Callable[[Any], Any],
  write_processor: Callable[[pathlib.Path], Any],
) -> tuple[Any, pathlib.Path, Any]:
  """A tiny CLIPModel, as PickScore's folder: model, folder and processor."""
  import torch
  import transformers

  folder = tmp_path_factory.mktemp("clip")
  config = transformers.CLIPConfig(
    text_config=_TEXT, vision_config=_VISION, projection_dim=6
  )
  model = randomized(transformers.CLIPModel(config))
  with torch.no_grad():
    model.logit_scale.fill_(3.0)
  model.save_pretrained(folder)
  tokenizer = shared / "models" / "clip-tokenizer"
  transformers.CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
  return model, folder, write_processor(folder)
