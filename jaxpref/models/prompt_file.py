"""Learned virtual tokens in the files of the library PEFT, read and written.

A folder holds adapter_config.json, whose `peft_type` is PROMPT_TUNING, and
adapter_model.safetensors with `prompt_embeddings` [virtual tokens, embed].
"""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.models.adapter import (
  CONFIG,
  TENSORS,
  check_files,
  read_settings,
  write_folder,
)
from jaxpref.models.build import Definition
from jaxpref.models.export import check_replaceable, gather
from jaxpref.models.tensors import Tensor, load_table, open_file
from jaxpref.models.weights import Weight
from jaxpref.types import Params

NAME = "prompt_embeddings"
# What would make virtual tokens of another kind, and the values that do not.
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "peft_type": ("PROMPT_TUNING",),
  "num_transformer_submodules": (1, None),  # 2 for an encoder and a decoder
  "modules_to_save": (None, []),
}


def save_prompt(
  folder: str | pathlib.Path,
  definition: Definition,
  params: Params,
  base: str = "",
) -> None:
  """Writes the virtual tokens as PEFT does, whole or not at all.

  In a run of several processes all must call it, and the first one writes.

  Args:
    folder: made anew; an adapter that is there is replaced.
    definition: a model with virtual tokens.
    params: their embeddings alone, sharded or not.
    base: the folder or name of the model that they belong to.
  """
  folder = pathlib.Path(folder)
  check_replaceable(folder, CONFIG)
  array = np.ascontiguousarray(gather(params["prompt"]["embedding"]))
  if jax.process_index() == 0:
    write_folder(folder, {NAME: array}, _to_peft(definition, base))


def load_prompt(
  folder: str | pathlib.Path, definition: Definition, shardings: Any = None
) -> Params:
  """The embeddings of a folder, in float32.

  Args:
    folder: virtual tokens of PEFT.
    definition: a model with virtual tokens, as `with_prompt` reads them.
    shardings: a nested dict of shardings; None puts all on one device.

  Raises UserError for a tensor that is missing or of another shape.
  """
  with contextlib.ExitStack() as stack:
    tensors = _open(folder, definition, stack)
    table = [_weight(definition)]
    return load_table(tensors, table, definition.shapes, shardings)


def check_prompt(folder: str | pathlib.Path, definition: Definition) -> None:
  """Raises UserError where `load_prompt` would; reads no tensor."""
  with contextlib.ExitStack() as stack:
    _open(folder, definition, stack)


def with_prompt(prompt: config.Prompt) -> config.Prompt:
  """The settings with the length that the folder at `prompt.path` says.

  Raises UserError for a folder that cannot be used, and for a length that is
  given and differs.
  """
  if not prompt.path:
    return prompt
  folder = pathlib.Path(prompt.path)
  check_files(folder, "config.model.prompt.path")
  given = read_settings(folder / CONFIG)
  for key, allowed in _ALLOWED.items():
    if given.get(key, allowed[0]) not in allowed:
      raise UserError(
        f"{folder / CONFIG}: {key} is {given[key]!r}, which is not supported; "
        f"it must be {' or '.join(json.dumps(value) for value in allowed)}. "
        "Give a folder of plain prompt tuning (a LoRA adapter goes into "
        "config.model.lora.path)."
      )
  length = given.get("num_virtual_tokens")
  if not isinstance(length, int) or isinstance(length, bool) or length < 1:
    raise UserError(
      f"{folder / CONFIG}: num_virtual_tokens is {length!r}; it must be a "
      "whole number above 0. Take the file that PEFT wrote."
    )
  if prompt.length not in (0, length):
    raise UserError(
      f"config.model.prompt.length is {prompt.length}, and {folder} has "
      f"{length} virtual tokens. Leave it out to go on with those, or leave "
      "out config.model.prompt.path to begin with new ones."
    )
  return dataclasses.replace(prompt, length=length)


def _weight(definition: Definition) -> Weight:
  shape = (definition.prompt.length, definition.config.hidden_size)
  return Weight(NAME, ("prompt", "embedding"), shape, transposed=False)


def _open(
  folder: str | pathlib.Path,
  definition: Definition,
  stack: contextlib.ExitStack,
) -> dict[str, Tensor]:
  path = pathlib.Path(folder) / TENSORS
  tensors = {each.name: each for each in open_file(path, stack)}
  weight = _weight(definition)
  found = tensors.get(NAME)
  shape = tuple(found.slice().get_shape()) if found else ()
  if shape != weight.shape:
    has = f"has the shape {list(shape)}" if found else "is missing"
    raise UserError(
      f"{path}: {NAME} {has}; for the model in config.model.path it is "
      f"{list(weight.shape)}. Give virtual tokens of this very model in "
      "config.model.prompt.path."
    )
  if others := sorted(set(tensors) - {NAME}):
    raise UserError(
      f"{path}: {others[0]} is left over; virtual tokens are {NAME} alone. "
      "Give a folder of plain prompt tuning."
    )
  return tensors


def _to_peft(definition: Definition, base: str) -> dict[str, Any]:
  shape = definition.config
  return {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "num_virtual_tokens": definition.prompt.length,
    "token_dim": shape.hidden_size,
    "num_transformer_submodules": 1,
    "num_attention_heads": shape.num_attention_heads,
    "num_layers": shape.num_hidden_layers,
    "inference_mode": True,
  }
