"""Tensors of safetensors files, into parameters (never pickle).

Files are memory-mapped and each tensor is read once, so that beside the
devices the host holds one leaf of the parameters at most.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import safetensors

from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.quantized import quantize_each
from jaxpref.models.weights import Weight, at
from jaxpref.types import Params

_FLOATS = ("F64", "F32", "F16", "BF16")


class Tensor(NamedTuple):
  """A tensor in an open file, not yet read."""

  path: pathlib.Path
  file: Any
  name: str

  def slice(self) -> Any:
    return self.file.get_slice(self.name)

  def read(self) -> np.ndarray:
    return self.file.get_tensor(self.name)


@dataclasses.dataclass(frozen=True)
class Files:
  """Names of the files that hold a model's tensors."""

  stem: str = "model"
  variant: str = ""  # such as fp16

  @property
  def single(self) -> str:
    return f"{self.stem}{self.infix}.safetensors"

  @property
  def index(self) -> str:
    return f"{self.stem}.safetensors.index{self.infix}.json"

  def shard(self, number: int, count: int) -> str:
    place = f"{number:05d}-of-{count:05d}"
    return f"{self.stem}{self.infix}-{place}.safetensors"

  @property
  def infix(self) -> str:
    return f".{self.variant}" if self.variant else ""


class Reading(NamedTuple):
  """How the tensors of a folder are found."""

  files: Files = Files()
  # The name in our table of a tensor in a file; None where it is to be ignored.
  rename: Callable[[str], str | None] = str


def load_tensors(
  folder: pathlib.Path,
  definition: Definition,
  shardings: Any,
  reading: Reading,
  only: Sequence[Weight] | None = None,
) -> Params:
  """Parameters of a folder, each tensor read once and cut into its shards.

  Args:
    folder: holds the tensors in one file, or in shards and their index.
    definition: what the parameters are for; they are cast to its dtypes.
    shardings: a nested dict of shardings; None puts all on one device.
    reading: names of the files and of their tensors.
    only: rows of the definition's table; None loads all of it.

  Raises UserError for a file that is missing or broken, and for tensors that
  are missing, left over or of another shape, naming them.
  """
  with contextlib.ExitStack() as stack:
    tensors = open_tensors(folder, stack, reading)
    check_table(folder, tensors, definition.table, definition.shapes)
    table = definition.table if only is None else only
    return load_table(tensors, table, definition.shapes, shardings)


def load_table(
  tensors: Mapping[str, Tensor],
  table: Sequence[Weight],
  shapes: Mapping[str, Any],
  shardings: Any,
) -> Params:
  """The parameters of a table's rows; arguments as of `load_tensors`."""
  params: dict[str, Any] = {}
  for weight in table:
    leaf = at(shapes, weight.path)
    sharding = None if shardings is None else at(shardings, weight.path)
    place = params
    for key in weight.path[:-1]:
      place = place.setdefault(key, {})
    if weight.optional and weight.name not in tensors:
      zeros = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
      place[weight.path[-1]] = zeros
    elif not jnp.issubdtype(leaf.dtype, jnp.floating):
      place |= _load_quantized(tensors, weight, shapes, shardings)
    else:
      place[weight.path[-1]] = load_leaf(tensors, weight, leaf, sharding)
  return params


def check_tensors(
  folder: pathlib.Path, definition: Definition, reading: Reading
) -> None:
  """Raises UserError where `load_tensors` would; reads no tensor."""
  with contextlib.ExitStack() as stack:
    tensors = open_tensors(folder, stack, reading)
    check_table(folder, tensors, definition.table, definition.shapes)


def read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(
      f"{path}: there is no such file. Give a Hugging Face folder that has it."
    ) from error
  except (ValueError, OSError) as error:
    raise UserError(
      f"{path}: not readable as JSON ({error}). Copy the file again."
    ) from error


def open_tensors(
  folder: pathlib.Path, stack: contextlib.ExitStack, reading: Reading
) -> dict[str, Tensor]:
  """The tensors by their names in our table, those to be ignored left out."""
  found = {}
  for tensor in _open(folder, stack, reading.files):
    name = reading.rename(tensor.name)
    if name is not None:
      found[name] = tensor
  return found


def _open(
  folder: pathlib.Path, stack: contextlib.ExitStack, names: Files
) -> list[Tensor]:
  if (folder / names.single).is_file():
    return open_file(folder / names.single, stack)
  if not (folder / names.index).is_file():
    old = sorted(folder.glob("*pytorch_model*.bin"))
    raise UserError(
      f"{folder}: there is no {names.single} and no {names.index}."
      + (
        f" {old[0].name} is a pickle, which is not read since it may run code: "
        "load the folder with transformers and save_pretrained it, which "
        "writes safetensors."
        if old
        else " Give a folder that has one of them."
      )
    )
  index = read_json(folder / names.index)
  where = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(where, dict):
    raise UserError(
      f"{folder / names.index}: has no weight_map of tensors to files. Copy "
      "the file again."
    )
  tensors = []
  for name in sorted(set(where.values())):
    if not (folder / name).is_file():
      raise UserError(
        f"{folder / name}: there is no such file, and {names.index} names it. "
        "Download the missing file."
      )
    tensors += open_file(folder / name, stack)
  return tensors


def open_file(path: pathlib.Path, stack: contextlib.ExitStack) -> list[Tensor]:
  """Its tensors; UserError where the file is broken or cut short."""
  try:
    file = stack.enter_context(safetensors.safe_open(path, "numpy"))
    return [Tensor(path, file, name) for name in file.keys()]  # noqa: SIM118
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f"{path}: not a whole safetensors file ({error}). Copy or download it "
      "again."
    ) from error


def check_table(
  folder: pathlib.Path,
  tensors: Mapping[str, Tensor],
  table: Sequence[Weight],
  leaves: Mapping[str, Any],
) -> None:
  """Raises UserError unless the tensors are those of the table, and whole."""
  shapes = {}
  for weight in table:
    layers = at(leaves, weight.path).shape[0] if weight.stacked else 1
    for layer in range(layers):
      shapes[weight.name.format(layer)] = weight.shape
  optional = {weight.name for weight in table if weight.optional}
  missing = sorted(set(shapes) - set(tensors) - optional)
  if missing:
    raise UserError(
      f"{folder}: {_some(missing)} missing from the safetensors files, and "
      "config.json asks for them. Download the folder again, or correct "
      "config.json."
    )
  extra = sorted(set(tensors) - set(shapes))
  if extra:
    raise UserError(
      f"{tensors[extra[0]].path}: {_some(extra)} left over: config.json "
      "describes a model without them. Correct config.json, or choose a plain "
      "model of its kind."
    )
  for name in sorted(shapes.keys() & tensors.keys()):
    shape = shapes[name]
    path, given = tensors[name].path, tensors[name].slice()
    if tuple(given.get_shape()) != shape:
      raise UserError(
        f"{path}: {name} has the shape {list(given.get_shape())}; by "
        f"config.json it is {list(shape)}. Correct config.json, or take the "
        "files of the same model."
      )
    if given.get_dtype() not in _FLOATS:
      raise UserError(
        f"{path}: {name} is {given.get_dtype()}; supported are "
        f"{', '.join(_FLOATS)}. Take the unquantised model."
      )


def _some(names: list[str]) -> str:
  more = f" and {len(names) - 4} more" if len(names) > 4 else ""
  return f"{', '.join(names[:4])}{more} {'is' if len(names) == 1 else 'are'}"


def load_leaf(
  tensors: Mapping[str, Tensor],
  weight: Weight,
  leaf: jax.ShapeDtypeStruct,
  sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  # A host buffer for each distinct shard of this process is filled layer by
  # layer.
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
  for index in sharding.addressable_devices_indices_map(leaf.shape).values():
    ends = _ends(index, leaf.shape)
    size = [stop - start for start, stop in ends]
    shards.setdefault(ends, np.empty(size, leaf.dtype))
  for layer in range(leaf.shape[0] if weight.stacked else 1):
    name = weight.name.format(layer)
    tensor = tensors[name].read()
    if weight.stacked:
      array = weight.ours(tensor, leaf.shape[1:])
    else:
      array = weight.ours(tensor, leaf.shape)
    for ends, shard in shards.items():
      if not weight.stacked:
        shard[...] = array[tuple(slice(*end) for end in ends)]
      elif ends[0][0] <= layer < ends[0][1]:
        part = array[tuple(slice(*end) for end in ends[1:])]
        shard[layer - ends[0][0]] = part
  return jax.make_array_from_callback(
    leaf.shape, sharding, lambda index: shards[_ends(index, leaf.shape)]
  )


def _load_quantized(
  tensors: Mapping[str, Tensor],
  weight: Weight,
  shapes: Mapping[str, Any],
  shardings: Any,
) -> dict[str, jax.Array]:
  """A kernel and its scales; one layer at a time is held as it was."""
  like = at(shapes, weight.path[:-1])
  places = None if shardings is None else at(shardings, weight.path[:-1])
  sharding = None
  if places is not None:
    stacked = places["kernel"]
    sharding = NamedSharding(stacked.mesh, PartitionSpec(*stacked.spec[1:]))
  layers, *shape = like["kernel"].shape
  leaf = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
  rows = (weight._replace(name=weight.name.format(n)) for n in range(layers))
  kernels = (load_leaf(tensors, row, leaf, sharding) for row in rows)
  return quantize_each(kernels, like, places)


def _ends(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  return tuple(
    at.indices(size)[:2] for at, size in zip(index, shape, strict=True)
  )
