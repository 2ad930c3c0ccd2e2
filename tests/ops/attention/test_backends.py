"""Which back end is chosen, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.ops.attention import (
  Kind,
  backends,
  causal_attention,
  resolve_backend,
  sequence_attention,
)
from jaxpref.ops.attention.cudnn import cudnn_lacks

PLAIN = Kind(scale=0.5)
QKV = tuple(
  jax.random.normal(key, (8, 6, heads, 4))
  for key, heads in zip(jax.random.split(jax.random.key(0), 3), (4, 2, 2))
)


@pytest.mark.parametrize(
  ("backend", "platform", "expected"),
  [("auto", "cpu", "xla"), ("auto", "gpu", "cudnn"), ("auto", "tpu", "splash"),
   ("xla", "tpu", "xla"), ("cudnn", "gpu", "cudnn")],
)  # fmt: skip
def test_the_platform_decides(backend, platform, expected):
  assert resolve_backend(backend, platform) == expected


@pytest.mark.parametrize(
  ("backend", "where"), [("cudnn", "GPU"), ("splash", "TPU")]
)
def test_a_backend_that_does_not_run_here(backend, where):
  message = (
    f"'{backend}', which runs on {where}, and the mesh is of CPU devices"
  )
  with pytest.raises(UserError, match=message):
    sequence_attention(*QKV, PLAIN, backend=backend)


def test_the_mesh_decides_not_the_process(tpu_devices):
  assert sharding.current_platform() == "cpu"
  mesh = jax.make_mesh((1,), ("data",), devices=tpu_devices[:1])
  with jax.set_mesh(mesh):
    assert sharding.current_platform() == "tpu"


@pytest.mark.parametrize(
  ("dtype", "head_dim", "kind", "lacks"),
  [
    ("bfloat16", 128, PLAIN._replace(window=4), ""),
    ("float32", 128, PLAIN, "not in float32"),
    ("bfloat16", 512, PLAIN, "these have 512"),
    ("bfloat16", 20, PLAIN, "multiples of 8"),
    ("bfloat16", 64, PLAIN._replace(softcap=50.0), "the model's is 50"),
  ],
)
def test_cudnn_lacks(dtype, head_dim, kind, lacks):
  why = cudnn_lacks(jnp.dtype(dtype), head_dim, kind)
  assert lacks in why
  assert bool(why) == bool(lacks)


def test_auto_on_a_gpu_takes_xla_where_cudnn_cannot(monkeypatch):
  monkeypatch.setattr(sharding, "current_platform", lambda: "gpu")
  out = sequence_attention(*QKV, PLAIN)  # float32
  np.testing.assert_array_equal(out, causal_attention(*QKV, PLAIN))
  with pytest.raises(UserError, match="cuDNN cannot compute this model's: it"):
    sequence_attention(*QKV, PLAIN, backend="cudnn")


def test_a_kernel_sees_its_rows_and_heads(monkeypatch):
  """Two rows and half of the heads of 8 rows, on 4 x 2 devices."""
  seen = []

  def kernel(q, k, v, kind):
    seen.append((q.shape, k.shape))
    return causal_attention(q, k, v, kind)

  monkeypatch.setitem(backends._KERNEL, "splash", kernel)
  monkeypatch.setattr(sharding, "current_platform", lambda: "tpu")
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    out = jax.jit(lambda *qkv: sequence_attention(*qkv, PLAIN))(*QKV)
  assert seen == [((2, 6, 2, 4), (2, 6, 1, 4))]
  assert out.addressable_shards[0].data.shape == (2, 6, 2, 4)
  # Measured: equal.
  expected = causal_attention(*QKV, PLAIN)
  np.testing.assert_allclose(out, expected, atol=1e-6)
