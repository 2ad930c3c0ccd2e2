"""Shapes of CLIP's towers, by the names of transformers' config.json."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any, TypeVar

from jaxpref.errors import UserError
from jaxpref.models.sdxl.parse import parse

TEXT, TEXT_PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
VISION = "CLIPVisionModelWithProjection"
C = TypeVar("C", bound="ClipConfig")

_REFUSED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("quick_gelu", "gelu"),
  "attention_dropout": (0.0,),
  "dropout": (0.0,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
  """What both towers have; defaults are transformers', of the text's."""

  architectures: tuple[str, ...] = ()
  hidden_size: int = 512
  intermediate_size: int = 2048
  num_hidden_layers: int = 12
  num_attention_heads: int = 8
  projection_dim: int = 512
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  given: str = "{}"  # the whole of the file, for `to_json`

  @classmethod
  def from_json(
    cls: type[C], given: Mapping[str, Any], *, source: str = "config.json"
  ) -> C:
    """Reads a config.json; UserError for what cannot be honoured."""
    config = parse(cls, given, source=source, refused=_REFUSED)
    if config.hidden_size % config.num_attention_heads:
      raise UserError(
        f"{source}: hidden_size ({config.hidden_size}) is not a multiple of "
        f"num_attention_heads ({config.num_attention_heads}). Take the file of "
        "the original model."
      )
    return config

  def to_json(self) -> dict[str, Any]:
    own = dataclasses.asdict(self)
    del own["given"]
    return {**own, **json.loads(self.given)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(ClipConfig):
  """Of CLIPTextModel, or of CLIPTextModelWithProjection."""

  architectures: tuple[str, ...] = (TEXT,)
  model_type: str = "clip_text_model"
  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407

  @property
  def projected(self) -> bool:
    return self.architectures[:1] == (TEXT_PROJECTED,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(ClipConfig):
  """Of CLIPVisionModelWithProjection."""

  architectures: tuple[str, ...] = (VISION,)
  model_type: str = "clip_vision_model"
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  num_channels: int = 3


def clip_l() -> ClipTextConfig:
  """SDXL's first encoder: the text tower of OpenAI's ViT-L/14."""
  return ClipTextConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_attention_heads=12,
    projection_dim=768,
    eos_token_id=2,
  )


def open_clip_bigg() -> ClipTextConfig:
  """SDXL's second encoder: the text tower of OpenCLIP's ViT-bigG/14."""
  return ClipTextConfig(
    architectures=(TEXT_PROJECTED,),
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
    eos_token_id=2,
  )
