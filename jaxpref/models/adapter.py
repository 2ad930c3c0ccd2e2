"""Adapters in the files of the library PEFT, read and written.

A folder holds adapter_config.json and adapter_model.safetensors, with
`base_model.model.LAYER.lora_A.weight` [rank, in] and `...lora_B.weight`
[out, rank] of each layer. Beside those of a reward model stands its head, which
trains in full: `base_model.model.score.weight` [rewards, embed].
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.export import (
  check_replaceable,
  gather,
  replace_folder,
  write_json,
)
from jaxpref.models.heads import SCORE
from jaxpref.models.tensors import Tensor, load_table, open_file, read_json
from jaxpref.models.weights import Weight
from jaxpref.types import Params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_HEAD = f"base_model.model.{SCORE}"
_NAME = re.compile(r"base_model\.model\.(.*)\.lora_[AB]\.weight")
_LAYER = re.compile(r"model\.layers\.\d+\.(.*)")
# What would make an adapter of another kind, and the values that do not.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "bias": ("none", None),
  "fan_in_fan_out": (False, None),
  "init_lora_weights": (True, False, None, "gaussian"),  # the base as it was
  "modules_to_save": (None, [], ["score"]),  # the head of a reward model
  "rank_pattern": (None, {}),
  "alpha_pattern": (None, {}),
  "layers_to_transform": (None,),
  "layer_replication": (None,),
  "trainable_token_indices": (None,),
  "target_parameters": (None, []),
  "use_dora": (False, None),
  "use_qalora": (False, None),
  "use_bdlora": (None,),
  "lora_bias": (False, None),
  "alora_invocation_tokens": (None,),
  "arrow_config": (None,),
  "kasa_config": (None,),
  "monteclora_config": (None,),
  "velora_config": (None,),
}


def save_adapter(
  folder: str | pathlib.Path,
  definition: Definition,
  factors: Params,
  base: str = "",
) -> None:
  """Writes the adapter as PEFT does, whole or not at all.

  In a run of several processes all must call it, and the first one writes.

  Args:
    folder: made anew; an adapter that is there is replaced.
    definition: a model with an adapter.
    factors: its arrays, sharded or not.
    base: the folder or name of the model that it belongs to.
  """
  folder = pathlib.Path(folder)
  check_replaceable(folder, CONFIG)
  tensors: dict[str, np.ndarray] = {}
  for weight in factor_table(definition):
    leaf: Any = factors
    for key in weight.path:
      leaf = leaf[key]
    array = gather(leaf)
    for layer in range(len(array) if weight.stacked else 1):
      part = array[layer] if weight.stacked else array
      tensors[weight.name.format(layer)] = weight.theirs(part)
  if jax.process_index() != 0:
    return
  write_folder(folder, tensors, _to_peft(definition, base))


def load_adapter(
  folder: str | pathlib.Path, definition: Definition, shardings: Any = None
) -> Params:
  """The factors of a folder, and the reward head if there is one.

  Each is cut into its shards.

  Args:
    folder: an adapter of PEFT.
    definition: a model with an adapter, as `with_adapter` reads it.
    shardings: a nested dict of shardings; None puts all on one device.

  Raises UserError for tensors that are missing or of another shape.
  """
  with contextlib.ExitStack() as stack:
    path = pathlib.Path(folder) / TENSORS
    tensors = {each.name: each for each in open_file(path, stack)}
    _check_tensors(path, tensors, definition)
    table = [
      weight
      for weight in factor_table(definition)
      if weight.name != _HEAD or _HEAD in tensors
    ]
    return load_table(tensors, table, definition.shapes, shardings)


def check_adapter(folder: str | pathlib.Path, definition: Definition) -> None:
  """Raises UserError where `load_adapter` would; reads no tensor."""
  with contextlib.ExitStack() as stack:
    path = pathlib.Path(folder) / TENSORS
    tensors = {each.name: each for each in open_file(path, stack)}
    _check_tensors(path, tensors, definition)


def with_adapter(lora: config.Lora) -> config.Lora:
  """The settings with what the adapter at `lora.path` says, if there is one.

  Raises UserError for a folder that cannot be used, and for settings that are
  given and differ.
  """
  if not lora.path:
    return lora
  folder = pathlib.Path(lora.path)
  check_files(folder, "config.model.lora.path")
  given = _read_config(folder / CONFIG)
  found = dataclasses.replace(
    lora,
    rank=given["r"],
    alpha=float(given["lora_alpha"]),
    rs=bool(given.get("use_rslora")),
    targets="|".join(_layers(folder / TENSORS)),
  )
  default = config.Lora()
  for name in ("rank", "alpha", "rs", "targets"):
    asked, has = getattr(lora, name), getattr(found, name)
    if asked not in (has, getattr(default, name)):
      raise UserError(
        f"config.model.lora.{name} is {asked!r}, and the adapter in {folder} "
        f"has {has!r}. Leave it out to go on with that adapter, or leave out "
        "config.model.lora.path to begin with a new one."
      )
  return found


def named_base(folder: str | pathlib.Path) -> str:
  """The model that an adapter says it belongs to; '' where it names none."""
  given = read_settings(pathlib.Path(folder) / CONFIG)
  return str(given.get("base_model_name_or_path") or "")


def check_files(folder: pathlib.Path, key: str) -> None:
  """Raises UserError unless the folder that `key` names has both files."""
  if not (folder / CONFIG).is_file():
    raise UserError(
      f"{key}: there is no {folder / CONFIG}. Give the folder of an adapter "
      "that PEFT saved, or '' to begin with a new one."
    )
  if not (folder / TENSORS).is_file():
    raise UserError(
      f"{key}: there is no {folder / TENSORS}. An adapter_model.bin is a "
      "pickle, which is not read since it may run code: load it with PEFT and "
      "save_pretrained it, which writes safetensors."
    )


def read_settings(path: pathlib.Path) -> dict[str, Any]:
  """What an adapter's file of settings says; UserError where it is none."""
  given = read_json(path)
  if not isinstance(given, dict):
    raise UserError(f"{path}: holds no JSON object. Copy the file again.")
  return given


def write_folder(
  folder: pathlib.Path,
  tensors: dict[str, np.ndarray],
  settings: dict[str, Any],
) -> None:
  """Both files of an adapter, in the place of what has that name."""
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  safetensors.numpy.save_file(tensors, partial / TENSORS, {"format": "pt"})
  write_json(partial / CONFIG, settings)
  replace_folder(folder, partial)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  given = read_settings(path)
  for key, allowed in _ALLOWED.items():
    if given.get(key, allowed[0]) not in allowed:
      raise UserError(
        f"{path}: {key} is {given[key]!r}, which is not supported; it must be "
        f"{' or '.join(json.dumps(value) for value in allowed)}. Give a plain "
        "LoRA adapter."
      )
  rank, alpha = given.get("r"), given.get("lora_alpha")
  whole = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
  if not (whole and isinstance(alpha, (int, float)) and alpha > 0):
    raise UserError(
      f"{path}: r is {rank!r} and lora_alpha {alpha!r}; both must be positive "
      "numbers, r a whole one. Take the file that PEFT wrote."
    )
  return given


def _layers(path: pathlib.Path) -> list[str]:
  """Names of the layers in the file, without the number, sorted."""
  found = set()
  with contextlib.ExitStack() as stack:
    names = {tensor.name for tensor in open_file(path, stack)}
    for name in names - {_HEAD}:
      match = _NAME.fullmatch(name)
      layer = match and _LAYER.fullmatch(match[1])
      if not layer:
        raise UserError(
          f"{path}: {name} is not supported; only linear layers inside of the "
          "model's blocks can have an adapter, none of embeddings or the head. "
          "Give an adapter without it."
        )
      found.add(layer[1])
  if not found:
    raise UserError(f"{path}: holds no tensor. Copy the file again.")
  return sorted(found)


def factor_table(
  definition: Definition, prefix: str = "base_model.model."
) -> list[Weight]:
  """Where each tensor of the file stands among the factors."""
  targets = set(definition.targets)
  rank, rows = definition.lora.rank, []
  for weight in definition.table:
    if weight.name == SCORE:
      rows.append(weight._replace(name=_HEAD))
    if weight.path[-1] == "kernel" and weight.path[:-1] in targets:
      out, into = weight.shape
      stem = f"{prefix}{weight.name.removesuffix('.weight')}"
      for letter, shape in (("a", (rank, into)), ("b", (out, rank))):
        name = f"{stem}.lora_{letter.upper()}.weight"
        path = (*weight.path[:-1], f"lora_{letter}")
        rows.append(Weight(name, path, shape, transposed=True))
  return rows


def _check_tensors(
  path: pathlib.Path, tensors: dict[str, Tensor], definition: Definition
) -> None:
  names = set(tensors)
  for weight in factor_table(definition):
    if weight.name == _HEAD and _HEAD not in names:
      continue  # an adapter of the model without it
    layers = definition.config.num_hidden_layers if weight.stacked else 1
    for layer in range(layers):
      name = weight.name.format(layer)
      shape = tuple(tensors[name].slice().get_shape()) if name in names else ()
      if shape != weight.shape:
        has = f"has the shape {list(shape)}" if shape else "is missing"
        raise UserError(
          f"{path}: {name} {has}; for the model in config.model.path it is "
          f"{list(weight.shape)} in each of {layers} layers. Give an adapter "
          "of this very model in config.model.lora.path."
        )
      names.discard(name)
  if names:
    raise UserError(
      f"{path}: {min(names)} belongs to no layer of the model in "
      "config.model.path. Give an adapter of this very model."
    )


def _to_peft(definition: Definition, base: str) -> dict[str, Any]:
  lora = definition.lora
  alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
  rows = [weight for weight in factor_table(definition) if weight.stacked]
  layers = {weight.name.split(".")[-3] for weight in rows}
  return {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS" if definition.rewards else "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "r": lora.rank,
    "lora_alpha": alpha,
    "lora_dropout": lora.dropout,
    "use_rslora": lora.rs,
    "target_modules": sorted(layers),
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "modules_to_save": ["score"] if definition.rewards else None,
  }
