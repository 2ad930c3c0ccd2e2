"""Adapters of a UNet in the file of diffusers, read and written.

`pytorch_lora_weights.safetensors` holds `unet.LAYER.lora_A.weight` [rank, in]
and `...lora_B.weight` [out, rank]; its header says rank and alpha. Files of
before diffusers 0.22, and PEFT's own, name the same tensors otherwise.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models.adapter import factor_table
from jaxpref.models.build import Definition
from jaxpref.models.export import (
  check_replaceable,
  gather,
  replace_folder,
  start_folder,
)
from jaxpref.models.tensors import Tensor, check_table, load_table, open_file
from jaxpref.models.weights import at
from jaxpref.types import Params

FILE = "pytorch_lora_weights.safetensors"
TARGETS = "to_q|to_k|to_v|to_out.0"
"""`config.Lora.targets` as diffusers' own scripts have them."""

_PREFIX = "unet."
_METADATA = "lora_adapter_metadata"
_OLD = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
_LAYER = re.compile(r"(.*\.transformer_blocks)\.\d+\.(.*)\.lora_[AB]\.weight")


def save_lora(
  folder: str | pathlib.Path, definition: Definition, factors: Params
) -> None:
  """Writes a file that `load_lora_weights` of a pipeline reads.

  In a run of several processes all must call it, and the first one writes.

  Args:
    folder: made anew; an adapter that is there is replaced.
    definition: a UNet with an adapter.
    factors: its arrays, sharded or not.
  """
  folder = pathlib.Path(folder)
  check_replaceable(folder, FILE)
  tensors: dict[str, np.ndarray] = {}
  for weight in factor_table(definition, _PREFIX):
    array = gather(at(factors, weight.path))
    for layer in range(len(array)):
      tensors[weight.name.format(layer)] = weight.theirs(array[layer])
  if jax.process_index() != 0:
    return
  partial = start_folder(folder)
  metadata = {"format": "pt", _METADATA: json.dumps(_settings(definition))}
  safetensors.numpy.save_file(tensors, partial / FILE, metadata)
  replace_folder(folder, partial)


def read_lora(folder: str | pathlib.Path) -> config.Lora:
  """The settings of an adapter, for `define`.

  Without any in the header, alpha is the rank, as diffusers takes it.

  Raises UserError for a file that is missing or broken, and for adapters of
  other layers than those in transformer blocks.
  """
  path = _path(folder)
  with contextlib.ExitStack() as stack:
    tensors = _open(path, stack)
    layers = {}
    for name, tensor in tensors.items():
      match = _LAYER.fullmatch(name)
      if not match:
        raise UserError(
          f"{path}: {tensor.name} is not supported; only linear layers inside "
          "of transformer blocks can have an adapter, none of convolutions or "
          "text encoders. Give an adapter without it."
        )
      start, end = (
        re.escape(part.removeprefix(_PREFIX)) for part in match.groups()
      )
      if ".lora_A." in name:
        layers[rf"{start}\.\d+\.{end}"] = tensor.slice().get_shape()[0]
    ranks = sorted(set(layers.values()))
    if len(ranks) != 1:
      raise UserError(
        f"{path}: its ranks are {ranks}; all must be the same. Give an adapter "
        "of one rank."
      )
    given = _header(path)
  return config.Lora(
    rank=ranks[0],
    alpha=float(given.get("lora_alpha", ranks[0])),
    rs=bool(given.get("use_rslora", False)),
    targets="|".join(sorted(layers)),
  )


def resolve(lora: config.Lora) -> config.Lora:
  """The settings with those of the file at `lora.path`, if there is one.

  A new adapter is of the usual layers, unless others are named. Raises
  UserError as `read_lora`.
  """
  if lora.path:
    found = read_lora(lora.path)
    return dataclasses.replace(found, dropout=lora.dropout, path=lora.path)
  if lora.rank and lora.targets == config.Lora.targets:
    return dataclasses.replace(lora, targets=TARGETS)
  return lora


def load_lora(
  folder: str | pathlib.Path, definition: Definition, shardings: Any = None
) -> Params:
  """The factors of a file, each cut into its shards.

  Args:
    folder: that the file is in.
    definition: a UNet with an adapter, as `read_lora` has it.
    shardings: a nested dict of shardings; None puts all on one device.

  Raises UserError for tensors that are missing, left over or of another shape.
  """
  path = _path(folder)
  table = factor_table(definition, _PREFIX)
  with contextlib.ExitStack() as stack:
    tensors = _open(path, stack)
    check_table(path.parent, tensors, table, definition.shapes)
    return load_table(tensors, table, definition.shapes, shardings)


def _path(folder: str | pathlib.Path) -> pathlib.Path:
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise UserError(
      f"{path}: there is no such file. Give a folder with an adapter that "
      "diffusers' save_lora_weights wrote."
    )
  return path


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
  """Tensors by the names that we write."""
  tensors = {}
  for tensor in open_file(path, stack):
    name = tensor.name
    for old, new in _OLD.items():
      name = name.replace(old, new)
    name = name.removeprefix("base_model.model.").removeprefix(_PREFIX)
    tensors[f"{_PREFIX}{name}"] = tensor
  return tensors


def _header(path: pathlib.Path) -> dict[str, Any]:
  with safetensors.safe_open(path, "numpy") as file:
    given = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
  return {name.removeprefix(_PREFIX): value for name, value in given.items()}


def _settings(definition: Definition) -> dict[str, Any]:
  lora = definition.lora
  names = [weight.name for weight in factor_table(definition, "")]
  ends = {name.partition("{}.")[2].partition(".lora_")[0] for name in names}
  settings = {
    "r": lora.rank,
    "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
    "use_rslora": lora.rs,
    "target_modules": sorted(ends),
  }
  return {f"{_PREFIX}{name}": value for name, value in settings.items()}
