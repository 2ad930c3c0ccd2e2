"""Shapes of UNet2DConditionModel, by the names of diffusers' config.json."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from jaxpref.errors import UserError
from jaxpref.models.sdxl.parse import parse, spread

CLASS = "UNet2DConditionModel"
_CROSS = "CrossAttn"


@dataclasses.dataclass(frozen=True)
class Level:
  """A resolution of the UNet, on the way down or up, or the middle.

  `depth` has one entry a residual block: how many transformer layers follow
  it, 0 for none.
  """

  inputs: tuple[int, ...]  # channels into each residual block
  channels: int
  depth: tuple[int, ...]
  heads: int
  context: int  # width of what is cross-attended
  resampled: bool  # a change of resolution comes last


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
  """Defaults are diffusers'; see `sdxl_base` for SDXL's own values."""

  in_channels: int = 4
  out_channels: int = 4
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + (
    "DownBlock2D",
  )
  mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
  up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
  layers_per_block: int | tuple[int, ...] = 2
  transformer_layers_per_block: Any = 1
  reverse_transformer_layers_per_block: Any = None
  # A number of heads, whatever the name says: diffusers kept a mistake.
  attention_head_dim: int | tuple[int, ...] = 8
  cross_attention_dim: int | tuple[int, ...] = 1280
  use_linear_projection: bool = False
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  act_fn: str = "silu"
  flip_sin_to_cos: bool = True
  freq_shift: float = 0.0
  time_embedding_dim: int | None = None
  time_cond_proj_dim: int | None = None  # of distilled models: guidance
  addition_embed_type: str | None = None
  addition_time_embed_dim: int | None = None
  projection_class_embeddings_input_dim: int | None = None
  class_embed_type: str | None = None
  num_class_embeds: int | None = None
  sample_size: int | None = None  # of latents, where no size is asked for
  given: str = "{}"  # the whole of the file, for `to_json`

  @classmethod
  def from_json(
    cls, given: Mapping[str, Any], *, source: str = "config.json"
  ) -> "UNetConfig":
    """Reads a config.json; UserError for what cannot be honoured."""
    config = parse(cls, given, source=source, refused=_REFUSED)
    try:
      config.down()
      config.up()
    except UserError as error:
      raise UserError(f"{source}: {error}") from error
    return config

  def to_json(self) -> dict[str, Any]:
    own = dataclasses.asdict(self)
    del own["given"]
    return {"_class_name": CLASS, **own, **json.loads(self.given)}

  @property
  def time_dim(self) -> int:
    return self.time_embedding_dim or 4 * self.block_out_channels[0]

  def down(self) -> list[Level]:
    """Levels on the way down; each block's inputs are the last one's."""
    channels, count = self.block_out_channels, len(self.block_out_channels)
    levels = []
    for i, kind in enumerate(_known(self.down_block_types, "Down", count)):
      layers = self._layers()[i]
      before = channels[max(0, i - 1)]
      inputs = (before,) + (channels[i],) * (layers - 1)
      depth = self._depths(self.transformer_layers_per_block)[i]
      levels.append(self._level(i, inputs, kind, depth, i < count - 1))
    return levels

  def middle(self) -> Level | None:
    if self.mid_block_type is None:
      return None
    last = len(self.block_out_channels) - 1
    width = self.block_out_channels[-1]
    depth = self._depths(self.transformer_layers_per_block)[last]
    if self.mid_block_type == "UNetMidBlock2D":
      return self._level(last, (width,), "", 0, False)
    depth = depth[0] if isinstance(depth, tuple) else depth
    return self._level(last, (width, width), _CROSS, (depth, 0), False)

  def up(self) -> list[Level]:
    """Levels on the way up; each block's inputs have a skip beside them."""
    channels, count = self.block_out_channels, len(self.block_out_channels)
    skips = [channels[0]]
    for level in self.down():
      skips += [level.channels] * (len(level.inputs) + level.resampled)
    depths = self.reverse_transformer_layers_per_block
    if depths is None:
      depths = self._depths(self.transformer_layers_per_block)[::-1]
    levels, x = [], channels[-1]
    for i, kind in enumerate(_known(self.up_block_types, "Up", count)):
      at = count - 1 - i
      inputs = []
      for _ in range(self._layers()[at] + 1):
        inputs.append(x + skips.pop())
        x = channels[at]
      depth = self._depths(depths)[i]
      levels.append(self._level(at, tuple(inputs), kind, depth, at > 0))
    return levels

  def _level(
    self,
    i: int,
    inputs: tuple[int, ...],
    kind: str,
    depth: Any,
    resampled: bool,
  ) -> Level:
    count = len(self.block_out_channels)
    depths = spread(depth, len(inputs), "transformer_layers_per_block")
    return Level(
      inputs=inputs,
      channels=self.block_out_channels[i],
      depth=depths if kind.startswith(_CROSS) else (0,) * len(inputs),
      heads=spread(self.attention_head_dim, count, "attention_head_dim")[i],
      context=spread(self.cross_attention_dim, count, "cross_attention_dim")[i],
      resampled=resampled,
    )

  def _layers(self) -> tuple[int, ...]:
    count = len(self.block_out_channels)
    return spread(self.layers_per_block, count, "layers_per_block")

  def _depths(self, depths: Any) -> tuple[Any, ...]:
    count = len(self.block_out_channels)
    return spread(depths, count, "transformer_layers_per_block")


def sdxl_base() -> UNetConfig:
  """Of stable-diffusion-xl-base-1.0, SDXL-Turbo and -Lightning."""
  return UNetConfig(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
  )


def _known(kinds: tuple[str, ...], way: str, count: int) -> tuple[str, ...]:
  allowed = (f"CrossAttn{way}Block2D", f"{way}Block2D")
  kinds = spread(kinds, count, f"{way.lower()}_block_types")
  for kind in kinds:
    if kind not in allowed:
      raise UserError(
        f"{way.lower()}_block_types has {kind!r}; supported are "
        f"{' and '.join(allowed)}. Choose a model of such blocks."
      )
  return kinds


# What would change the outputs, and the values that do not.
_REFUSED: dict[str, tuple[Any, ...]] = {
  "_class_name": (CLASS,),
  "mid_block_type": (None, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
  "act_fn": ("silu", "swish"),
  "addition_embed_type": (None, "text_time"),
  "class_embed_type": (None, "timestep", "projection", "simple_projection"),
  "center_input_sample": (False,),
  "downsample_padding": (1,),
  "mid_block_scale_factor": (1, 1.0),
  "dropout": (0.0,),
  "only_cross_attention": (False,),
  "mid_block_only_cross_attention": (None, False),
  "encoder_hid_dim": (None,),
  "encoder_hid_dim_type": (None,),
  "num_attention_heads": (None,),
  "dual_cross_attention": (False,),
  "resnet_time_scale_shift": ("default",),
  "resnet_skip_time_act": (False,),
  "resnet_out_scale_factor": (1.0, 1),
  "time_embedding_type": ("positional",),
  "time_embedding_act_fn": (None,),
  "timestep_post_act": (None,),
  "conv_in_kernel": (3,),
  "conv_out_kernel": (3,),
  "attention_type": ("default",),
  "class_embeddings_concat": (False,),
  "cross_attention_norm": (None,),
}
