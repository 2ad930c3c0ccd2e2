"""Which implementation computes attention: that of the mesh's platform."""

from collections.abc import Callable
import functools

import jax
from jaxtyping import Array, Float

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.ops.attention.cudnn import cudnn_attention, cudnn_lacks
from jaxpref.ops.attention.kind import Kind
from jaxpref.ops.attention.splash import splash_attention
from jaxpref.ops.attention.xla import causal_attention

Attention = Callable[..., jax.Array]
"""attention(q, k, v, kind) -> out, of causal sequences."""

_PLATFORM = {"cudnn": "gpu", "splash": "tpu"}  # where each one runs
_KERNEL: dict[str, Attention] = {
  "cudnn": cudnn_attention,
  "splash": splash_attention,
}


def sequence_attention(
  q: Float[Array, "sequences length heads head_dim"],
  k: Float[Array, "sequences length kv_heads head_dim"],
  v: Float[Array, "sequences length kv_heads head_dim"],
  kind: Kind,
  *,
  backend: str = "auto",
) -> Float[Array, "sequences length heads head_dim"]:
  """Causal attention on the devices of the current mesh.

  Args:
    q, k, v: padded at their ends, if at all.
    kind: what the layer does.
    backend: xla, which runs anywhere; cudnn; splash; or auto, the fastest of
      the mesh's platform: xla on CPU, splash on TPU, and on GPU cudnn where it
      can (see `cudnn_lacks`), else xla.

  Raises UserError for a back end that cannot do this here.
  """
  chosen = resolve_backend(backend, sharding.current_platform())
  if chosen == "cudnn" and (why := cudnn_lacks(q.dtype, q.shape[3], kind)):
    if backend == "cudnn":
      raise UserError(
        f"config.model.attention is 'cudnn', and cuDNN cannot compute this "
        f"model's: {why}. Set it to auto, or to xla."
      )
    chosen = "xla"
  if chosen == "xla":
    return causal_attention(q, k, v, kind)
  # A kernel knows no mesh: each device runs it on its own rows and heads.
  kernel = functools.partial(_KERNEL[chosen], kind=kind)
  axes = [("batch", "length", heads, "head_dim") for heads in _HEADS]
  return sharding.per_device(kernel, axes, axes[0])(q, k, v)


def resolve_backend(backend: str, platform: str) -> str:
  """xla, cudnn or splash.

  Raises UserError for one that does not run on the platform.
  """
  if backend == "auto":
    runs = [name for name, where in _PLATFORM.items() if where == platform]
    return runs[0] if runs else "xla"
  needed = _PLATFORM.get(backend, platform)
  if platform != needed:
    raise UserError(
      f"config.model.attention is {backend!r}, which runs on {needed.upper()}, "
      f"and the mesh is of {platform.upper()} devices. Set it to auto, or to "
      "xla, which runs anywhere."
    )
  return backend


_HEADS = ("heads", "kv_heads", "kv_heads")
