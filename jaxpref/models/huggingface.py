"""Parameters of Hugging Face folders of a language model.

`jaxpref.models.export` is the way back; both read the definition's table.
"""

import contextlib
import pathlib
from typing import Any

from jaxtyping import Float32, Int32
import numpy as np

from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.export import save_pretrained
from jaxpref.models.heads import SCORE
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.models.llama.weights import IGNORED, TIED, text_name
from jaxpref.models.tensors import (
  Reading,
  check_tensors,
  load_tensors,
  open_tensors,
  read_json,
)
from jaxpref.types import Params

__all__ = [
  "check_params",
  "load_embeddings",
  "load_head",
  "load_params",
  "read_config",
  "save_pretrained",
]


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
  """Parameters of a folder with model.safetensors; see `load_tensors`.

  A reward head that the folder lacks is zero.
  """
  reading = _reading(definition.config)
  return load_tensors(pathlib.Path(folder), definition, shardings, reading)


def load_head(
  folder: str | pathlib.Path, definition: Definition, shardings: Any = None
) -> Params:
  """The reward head of a folder alone; see `load_params`."""
  whole = definition.base or definition
  rows = tuple(row for row in whole.table if row.name == SCORE)
  reading = _reading(definition.config)
  return load_tensors(
    pathlib.Path(folder), whole, shardings, reading, only=rows
  )


def load_embeddings(
  folder: str | pathlib.Path,
  definition: Definition,
  ids: Int32[np.ndarray, " tokens"],
) -> Float32[np.ndarray, "tokens embed"]:
  """What a folder's model reads of some tokens; no more is read than these."""
  config = definition.config
  table = (definition.base or definition).table
  (name,) = (row.name for row in table if row.path == ("embed", "table"))
  with contextlib.ExitStack() as stack:
    reading = _reading(config)
    tensors = open_tensors(pathlib.Path(folder), stack, reading)
    rows = tensors[name].slice()
    found = [rows[i : i + 1].astype(np.float32) for i in ids.tolist()]
  return np.concatenate(found) * np.float32(config.embed_scale)


def check_params(folder: str | pathlib.Path, definition: Definition) -> None:
  """Raises UserError where `load_params` would; reads no tensor."""
  reading = _reading(definition.config)
  check_tensors(pathlib.Path(folder), definition, reading)


def _reading(config: LlamaConfig) -> Reading:
  def rename(own: str) -> str | None:
    name = text_name(own)
    if name is None or name.endswith(IGNORED):
      return None
    return None if config.tie_word_embeddings and name == TIED else name

  return Reading(rename=rename)
