"""Long trees, compiled for a TPU: what attention takes of a chip's memory."""

import jax
import jax.numpy as jnp
import pytest

from jaxpref.ops.attention import Kind, packed_attention

pytestmark = pytest.mark.certify


def test_attention_of_long_trees(tpu_devices, certify):
  """A row with two responses to a prompt, heads as in Llama 3.1 8B."""
  short, long = (_temporary(tpu_devices[0], size) for size in (8192, 32768))
  certify(
    "Attention's gradient for a tree of 2 x 32,768 tokens (32 heads of 128, "
    "8 of keys) compiled for one v5e chip: temporary memory",
    f"{long / 2**30:.2f} GiB",
    "< 16 GiB, the chip's (scores would take 4 GiB a head and response)",
    long < 2**34,
  )
  certify(
    "Its growth from 8,192 to 32,768 tokens",
    f"{long / short:.2f} times",
    "< 4.4 times (the square: 16)",
    long < 4.4 * short,
  )


def _temporary(device, length):
  """Bytes, beside the arrays that go in and out."""
  auto, names = jax.sharding.AxisType.Auto, ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(
    (1, 1, 1), names, axis_types=(auto,) * 3, devices=[device]
  )
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=place)

  def total(q, k, v, expand, collapse):
    attend = packed_attention((expand,), collapse)
    out, _ = attend(q, k, v, None, Kind(128**-0.5))
    return jnp.sum(out.astype(jnp.float32))

  index = array(2, length, dtype="int32"), array(length, dtype="int32")
  heads = [array(length, count, 128) for count in (32, 8, 8)]
  with jax.default_matmul_precision("default"), jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    compiled = gradient.lower(*heads, *index).compile()
  return compiled.memory_analysis().temp_size_in_bytes
