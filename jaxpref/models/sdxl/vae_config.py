"""Shapes of AutoencoderKL, by the names of diffusers' config.json."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from jaxpref.models.sdxl.parse import parse

CLASS = "AutoencoderKL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeConfig:
  """Defaults are diffusers', but for the levels' channels: those of SDXL."""

  in_channels: int = 3
  out_channels: int = 3
  latent_channels: int = 4
  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2
  norm_num_groups: int = 32
  mid_block_add_attention: bool = True
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True
  scaling_factor: float = 0.18215
  shift_factor: float | None = None
  force_upcast: bool = True
  sample_size: int = 32  # of pixels; what `tiling` takes at a time
  given: str = "{}"  # the whole of the file, for `to_json`

  @classmethod
  def from_json(
    cls, given: Mapping[str, Any], *, source: str = "config.json"
  ) -> "VaeConfig":
    """Reads a config.json; UserError for what cannot be honoured."""
    levels = len(given.get("block_out_channels") or ())
    refused = {
      "_class_name": (CLASS,),
      "act_fn": ("silu",),
      "down_block_types": (("DownEncoderBlock2D",) * levels,),
      "up_block_types": (("UpDecoderBlock2D",) * levels,),
      "latents_mean": (None,),
      "latents_std": (None,),
    }
    return parse(cls, given, source=source, refused=refused)

  def to_json(self) -> dict[str, Any]:
    own = dataclasses.asdict(self)
    del own["given"]
    levels = len(self.block_out_channels)
    kinds = {
      "down_block_types": ("DownEncoderBlock2D",) * levels,
      "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return {"_class_name": CLASS, **own, **kinds, **json.loads(self.given)}

  @property
  def factor(self) -> int:
    """Pixels to a latent, along each side."""
    return 2 ** (len(self.block_out_channels) - 1)


def sdxl_vae() -> VaeConfig:
  """Of stable-diffusion-xl-base-1.0."""
  return VaeConfig(scaling_factor=0.13025, sample_size=1024)
