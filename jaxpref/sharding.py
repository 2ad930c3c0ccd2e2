"""Logical axes to mesh axes: the only file that knows the mesh."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpref.errors import UserError

RULES: dict[str, Any] = {
  "batch": ("data", "fsdp"),
  "length": None,
  "act_embed": None,
  "layers": None,
  "embed": "fsdp",
  "mlp": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "vocab": "tensor",
  # Apart from "batch" and "embed": a lookup in a table whose columns are spread
  # takes the rows of all who share it, see `models.layers.Embed`.
  "vocab_embed": "fsdp",
  "lookup_batch": "data",
  "norm": None,
  "window": None,  # rows and columns of a convolution's kernel
  "image": None,  # channels of pixels or latents: few
  "features": None,  # of a kernel whose other channels are cut already
  "halves": None,  # of a gated feed-forward: the value, the gate
  "tiles": None,  # of quantized kernels
  "reward": None,  # axes of a reward head
  "rank": None,  # of an adapter: too small to be worth cutting
}


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over the first data * fsdp * tensor devices; -1 takes the rest.

  `devices` are those of this machine, unless others are given.

  Raises UserError where the devices do not suffice.
  """
  sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
  devices = jax.devices() if devices is None else devices
  rest = [axis for axis, size in sizes.items() if size == -1]
  bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
  if len(rest) > 1 or bad:
    raise UserError(
      f"mesh is {sizes}: each axis must be at least 1, and at most one may be "
      "-1, which takes the devices that are left."
    )
  fixed = 1
  for size in sizes.values():
    fixed *= size if size != -1 else 1
  if rest:
    sizes[rest[0]] = max(1, len(devices) // fixed)
    fixed *= sizes[rest[0]]
  if fixed > len(devices) or (
    jax.process_count() > 1 and fixed != len(devices)
  ):
    raise UserError(
      f"mesh {sizes} needs {fixed} devices, and there are {len(devices)} "
      f"({devices[0].platform}). Set config.mesh.data, .fsdp and .tensor so "
      "that their product is the number of devices, or one of them to -1."
    )
  # Auto: Explicit, what make_mesh does by itself, makes `constrain` an
  # assertion.
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=auto,
    devices=devices[:fixed],
  )


def platform(mesh: Mesh) -> str:
  """What the mesh's devices are: cpu, gpu or tpu.

  Which is not always `jax.default_backend()`: a plan compiles for others.
  """
  return mesh.devices.flat[0].platform


def spec(axes: Sequence[str | None]) -> PartitionSpec:
  """The partition of an array whose dimensions have these logical axes."""
  return PartitionSpec(*(RULES[axis] if axis else None for axis in axes))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Pins an activation to its logical axes; a no-op on a device by itself."""
  if _by_itself():
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes))


def param_shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
  """NamedShardings of parameters, checked to divide.

  Args:
    mesh: the device mesh.
    shapes: a nested dict of arrays or ShapeDtypeStructs.
    axes: the same dict with a tuple of logical axes at each leaf.

  Raises UserError where a dimension does not divide its mesh axis.
  """

  def one(path: Any, shape: Any, names: tuple[str, ...]) -> NamedSharding:
    for name, size in zip(names, shape.shape, strict=True):
      axis = RULES[name]
      if axis and size % mesh.shape[axis]:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        raise UserError(
          f"{where}: axis {name!r} ({size}) is not divisible by mesh axis "
          f"{axis!r} ({mesh.shape[axis]}); choose a config.mesh.{axis} that "
          f"divides {size}."
        )
    return NamedSharding(mesh, spec(names))

  return jax.tree.map_with_path(one, shapes, axes)


def placed(shapes: Any, shardings: Any) -> Any:
  """Arrays or their shapes, as ShapeDtypeStructs with these shardings."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    shardings,
  )


def batch_sharding(mesh: Mesh, *, axis: int) -> NamedSharding:
  """Rows, on dimension `axis`, spread over the data and fsdp axes."""
  return NamedSharding(mesh, PartitionSpec(*(None,) * axis, RULES["batch"]))


def shards(axis: str) -> int:
  """Into how many the current mesh cuts a logical axis; 1 without a mesh."""
  mesh, rule = jax.sharding.get_abstract_mesh(), RULES[axis]
  names = rule if isinstance(rule, tuple) else (rule,)
  return math.prod(mesh.shape.get(name, 1) for name in names)


def current_platform() -> str:
  """cpu, gpu or tpu: what the current mesh's devices are.

  Not always this process's: a plan compiles for others. Without a mesh, it is.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def per_device(
  function: Callable[..., Any], inputs: Sequence[Any], output: Any
) -> Callable[..., Any]:
  """The function, run by each device on its own part of the arrays.

  Args:
    function: of arrays alone; it says by `sum_over` and the like what it needs
      of the other parts.
    inputs: the logical axes of each of its arguments.
    output: the logical axes of its result, or of each in a tuple of results.

  Within such a function it is the function itself.
  """
  if _by_itself():
    return function

  def is_axes(x: Any) -> bool:
    return isinstance(x, tuple) and not any(isinstance(y, tuple) for y in x)

  # Kernels do not say over which axes their results vary, hence no check.
  return jax.shard_map(
    function,
    in_specs=tuple(spec(axes) for axes in inputs),
    out_specs=jax.tree.map(spec, output, is_leaf=is_axes),
    check_vma=False,
  )


def _by_itself() -> bool:
  """Whether a program is one device's own: without a mesh, or `per_device`."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.are_all_axes_manual


# Below: for inside `per_device`, of a value on each device.


def shard(axis: str) -> jax.Array | int:
  """Which shard of a logical axis this device has."""
  return jax.lax.axis_index(RULES[axis]) if shards(axis) > 1 else 0


def sum_over(axis: str, x: Any) -> Any:
  """Sums over the shards of a logical axis."""
  return jax.lax.psum(x, RULES[axis]) if shards(axis) > 1 else x


def max_over(axis: str, x: jax.Array) -> jax.Array:
  """The largest over the shards of a logical axis."""
  return jax.lax.pmax(x, RULES[axis]) if shards(axis) > 1 else x


def sum_rows_into(axis: str, x: jax.Array) -> jax.Array:
  """Sums over the shards of rows; each keeps its shard of dimension 0.

  `axis` is the logical axis of that dimension, which lies on "fsdp" or on none.
  """
  mesh, scattered = jax.sharding.get_abstract_mesh(), RULES[axis]
  if mesh.empty:
    return x
  if scattered:
    x = jax.lax.psum_scatter(x, scattered, tiled=True)
  rest = tuple(name for name in RULES["batch"] if name != scattered)
  return jax.lax.psum(x, rest)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())
