"""Parameters of Hugging Face folders (safetensors, never pickle).

`jaxpref.models.export` is the way back; both read the table of the family's
`weights.py`.
"""

from collections.abc import Mapping
import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.export import save_pretrained
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.weights import (
  IGNORED,
  TIED,
  Weight,
  text_names,
  weights,
)
from jaxpref.types import Params

__all__ = ["check_params", "load_params", "read_config", "save_pretrained"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(folder: str | pathlib.Path) -> LlamaConfig:
  """The config.json of a folder; UserError where it is missing or foreign."""
  if not pathlib.Path(folder).is_dir():
    raise UserError(
      f"{folder}: there is no such folder. Give a Hugging Face folder with "
      "config.json and model.safetensors."
    )
  path = pathlib.Path(folder) / "config.json"
  return LlamaConfig.from_hf(read_json(path), source=str(path))


def load_params(
  folder: str | pathlib.Path, definition: Definition, shardings: Any = None
) -> Params:
  """Parameters of a folder, each tensor read once and cut into its shards.

  Args:
    folder: holds model.safetensors, or its shards and their index.
    definition: what the parameters are for; they are cast to its dtypes.
    shardings: a nested dict of shardings; None puts all on one device.

  Raises UserError for a file that is missing or broken, and for tensors that
  are missing, left over or of another shape, naming them.
  """
  folder = pathlib.Path(folder)
  table = weights(definition.config)
  params: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    tensors = _open_tensors(folder, stack)
    _check_tensors(folder, tensors, table, definition.config)
    for weight in table:
      leaf: Any = definition.shapes
      sharding = shardings
      for key in weight.path:
        leaf = leaf[key]
        sharding = None if sharding is None else sharding[key]
      place = params
      for key in weight.path[:-1]:
        place = place.setdefault(key, {})
      place[weight.path[-1]] = load_leaf(tensors, weight, leaf, sharding)
  return params


def check_params(folder: str | pathlib.Path, definition: Definition) -> None:
  """Raises UserError where `load_params` would; reads no tensor."""
  with contextlib.ExitStack() as stack:
    tensors = _open_tensors(pathlib.Path(folder), stack)
    table = weights(definition.config)
    _check_tensors(pathlib.Path(folder), tensors, table, definition.config)


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


class _Renamed(NamedTuple):
  """An opened file whose tensors have other names."""

  file: Any
  names: Mapping[str, str]  # of each, the one in the file

  def get_slice(self, name: str) -> Any:
    return self.file.get_slice(self.names[name])

  def get_tensor(self, name: str) -> np.ndarray:
    return self.file.get_tensor(self.names[name])


def _open_tensors(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, tuple[pathlib.Path, Any]]:
  """Of each tensor's name, its file, and that file opened (memory-mapped)."""
  tensors = _open_all(folder, stack)
  names = text_names(tensors)
  return {
    name: (tensors[own][0], _Renamed(tensors[own][1], names))
    for name, own in names.items()
  }


def _open_all(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> dict[str, tuple[pathlib.Path, Any]]:
  if (folder / _SINGLE).is_file():
    path = folder / _SINGLE
    file = open_file(path, stack)
    return dict.fromkeys(file.keys(), (path, file))
  if not (folder / _INDEX).is_file():
    old = sorted(folder.glob("pytorch_model*.bin"))
    raise UserError(
      f"{folder}: there is no {_SINGLE} and no {_INDEX}."
      + (
        f" {old[0].name} is a pickle, which is not read since it may run code: "
        "load the folder with transformers and save_pretrained it, which "
        "writes safetensors."
        if old
        else " Give a folder that has one of them."
      )
    )
  index = read_json(folder / _INDEX)
  where = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(where, dict):
    raise UserError(
      f"{folder / _INDEX}: has no weight_map of tensors to files. Copy the "
      "file again."
    )
  files = {}
  for name in sorted(set(where.values())):
    if not (folder / name).is_file():
      raise UserError(
        f"{folder / name}: there is no such file, and {_INDEX} names it. "
        "Download the missing file."
      )
    files[name] = open_file(folder / name, stack)
  tensors = {}
  for name, file in files.items():
    for tensor in file.keys():  # noqa: SIM118
      tensors[tensor] = (folder / name, file)
  return tensors


def open_file(path: pathlib.Path, stack: contextlib.ExitStack) -> Any:
  try:
    return stack.enter_context(safetensors.safe_open(path, "numpy"))
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f"{path}: not a whole safetensors file ({error}). Copy or download it "
      "again."
    ) from error


def _check_tensors(
  folder: pathlib.Path,
  tensors: Mapping[str, tuple[pathlib.Path, Any]],
  table: list[Weight],
  config: LlamaConfig,
) -> None:
  shapes = {}
  for weight in table:
    for layer in range(config.num_hidden_layers if weight.stacked else 1):
      shapes[weight.name.format(layer)] = weight.shape
  missing = sorted(set(shapes) - set(tensors))
  if missing:
    raise UserError(
      f"{folder}: {_some(missing)} missing from the safetensors files, and "
      "config.json asks for them. Download the folder again, or correct "
      "config.json."
    )
  extra = sorted(
    name
    for name in set(tensors) - set(shapes)
    if not name.endswith(IGNORED)
    and not (config.tie_word_embeddings and name == TIED)
  )
  if extra:
    raise UserError(
      f"{tensors[extra[0]][0]}: {_some(extra)} left over: config.json "
      "describes a model without them. Correct config.json, or choose another "
      "model."
    )
  for name, shape in shapes.items():
    path, file = tensors[name]
    given = file.get_slice(name)
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
  tensors: Mapping[str, tuple[pathlib.Path, Any]],
  weight: Weight,
  leaf: jax.ShapeDtypeStruct,
  sharding: jax.sharding.Sharding | None,
) -> jax.Array:
  # A host buffer for each distinct shard of this process is filled layer by
  # layer, so beside the devices the host holds one leaf at most.
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
  for index in sharding.addressable_devices_indices_map(leaf.shape).values():
    ends = _ends(index, leaf.shape)
    size = [stop - start for start, stop in ends]
    shards.setdefault(ends, np.empty(size, leaf.dtype))
  for layer in range(leaf.shape[0] if weight.stacked else 1):
    name = weight.name.format(layer)
    tensor = tensors[name][1].get_tensor(name)
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


def _ends(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  return tuple(
    at.indices(size)[:2] for at, size in zip(index, shape, strict=True)
  )
