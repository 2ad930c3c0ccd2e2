"""Residual blocks and changes of resolution, of the UNet and the VAE."""

from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpref.models.layers import Dtypes, Linear, Rngs
from jaxpref.models.sdxl.layers import Conv, GroupNorm, upsample
from jaxpref.sharding import constrain


class Residual(nnx.Module):
  """x + conv2(silu(norm2(conv1(silu(norm1(x))) + proj(time)))).

  `time` is the same for all blocks of a model, and comes activated.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    time: int | None,
    groups: int,
    eps: float,
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    rest: Any = {"rngs": rngs, "dtypes": dtypes}
    self.norm1 = GroupNorm(inputs, groups=groups, eps=eps, **rest)
    self.conv1 = Conv(("embed", inputs), ("mlp", outputs), **rest)
    self.time_emb_proj = (
      Linear({"embed": time}, {"mlp": outputs}, use_bias=True, **rest)
      if time
      else None
    )
    self.norm2 = GroupNorm(outputs, groups=groups, eps=eps, **rest)
    self.conv2 = Conv(("mlp", outputs), ("embed", outputs), **rest)
    self.conv_shortcut = (
      Conv(
        ("embed", inputs),
        ("features", outputs),
        window=1,
        padding=(0, 0),
        **rest,
      )
      if inputs != outputs
      else None
    )

  def __call__(
    self,
    x: Float[Array, "images Y X inputs"],
    time: Float[Array, "images T"] | None = None,
  ) -> Float[Array, "images Y X outputs"]:
    x = constrain(x, ("batch", "length", "length", "act_embed"))
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    if self.time_emb_proj is not None:
      assert time is not None
      y = y + self.time_emb_proj(time)[:, None, None]
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
  """A convolution of stride 2; the VAE pads after the image only."""

  def __init__(
    self,
    channels: int,
    *,
    padding: tuple[int, int] = (1, 1),
    rngs: Rngs,
    dtypes: Dtypes,
  ):
    self.conv = Conv(
      ("embed", channels),
      ("features", channels),
      stride=2,
      padding=padding,
      rngs=rngs,
      dtypes=dtypes,
    )

  def __call__(
    self, x: Float[Array, "images _ _ C"]
  ) -> Float[Array, "images _ _ C"]:
    return self.conv(x)


class Upsample(nnx.Module):
  """The nearest pixel, then a convolution."""

  def __init__(self, channels: int, *, rngs: Rngs, dtypes: Dtypes):
    self.conv = Conv(
      ("embed", channels), ("features", channels), rngs=rngs, dtypes=dtypes
    )

  def __call__(
    self, x: Float[Array, "images _ _ C"], rows: int, columns: int
  ) -> Float[Array, "images rows columns C"]:
    return self.conv(upsample(x, rows, columns))


def checkpointed(
  layer: Callable[..., Array], remat: str
) -> Callable[..., Array]:
  """The layer under a policy of jax.checkpoint; '' keeps all activations."""
  if not remat:
    return layer
  policy = getattr(jax.checkpoint_policies, remat)
  return jax.checkpoint(lambda *args: layer(*args), policy=policy)


def numbered(layers: Iterable[nnx.Module]) -> Any:
  """Layers by "0", "1" …, as their names in the file have them."""
  return nnx.Dict({str(i): layer for i, layer in enumerate(layers)})
