"""Parameters to a Hugging Face folder that transformers loads."""

from collections.abc import Iterator
import contextlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.models.heads import to_classifier
from jaxpref.models.lora import merged_kernel
from jaxpref.models.quantized import whole_kernel
from jaxpref.models.stream import write_safetensors
from jaxpref.models.tensors import Files
from jaxpref.models.weights import at
from jaxpref.types import Params

_TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
_TOKENIZER_FILES = (
  *_TOKENIZER_CONFIGS,
  "tokenizer.json",
  "tokenizer.model",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)


def save_pretrained(
  folder: str | pathlib.Path,
  definition: Definition,
  params: Params,
  tokenizer_folder: str | pathlib.Path | None = None,
  *,
  pad_token: tuple[int, str] | None = None,
  max_file_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json, safetensors and the tokenizer's files.

  All is written beside `folder` and renamed at the end, so that nothing
  half-written is ever found there; an earlier export is replaced. In a run of
  several processes all must call it (arrays are gathered, one leaf at a time)
  and the first one writes.

  Args:
    folder: made anew; its parents are made too.
    definition: what `params` are of.
    params: arrays, sharded or not; written in their own dtype. Those of an
      adapter are added to the weights that they change, and rounded to theirs.
      Quantized ones are written as the bfloat16 that they stand for, which is
      what trained, and not as the weights that they were made of.
    tokenizer_folder: where tokenizer files (and generation_config.json, if
      there is one) are copied from.
    pad_token: of a reward model, see `heads.to_classifier`; its tokenizer
      pads with it too. None leaves it without one.
    max_file_bytes: above it, tensors are spread over several files.
  """
  if definition.prompt.length:
    raise UserError(
      f"{folder}: virtual tokens cannot be added to a model's weights. They "
      "are saved by themselves, by jaxpref.models.prompt_file.save_prompt."
    )
  folder = pathlib.Path(folder)
  check_replaceable(folder)
  partial = start_folder(folder)
  write_tensors(partial, definition, params, Files(), max_file_bytes)
  if jax.process_index() == 0:
    _write_configs(partial, definition, params, pad_token)
    if tokenizer_folder is not None:
      _copy_tokenizer(partial, definition, tokenizer_folder, pad_token)
    replace_folder(folder, partial)


def write_tensors(
  folder: pathlib.Path,
  definition: Definition,
  params: Params,
  files: Files,
  max_file_bytes: int,
) -> None:
  """Writes the tensors alone, gathered and laid out one leaf at a time."""
  tensors = _tensors(definition, params)
  if jax.process_index() != 0:
    for _ in tensors:  # gathering takes all processes
      pass
    return
  dtype = jax.tree.leaves(params)[0].dtype
  groups: list[dict[str, tuple[int, ...]]] = [{}]
  used = total = 0
  for weight in definition.table:
    layers = at(params, weight.path).shape[0] if weight.stacked else 1
    size = math.prod(weight.shape) * dtype.itemsize
    for layer in range(layers):
      if groups[-1] and used + size > max_file_bytes:
        groups.append({})
        used = 0
      groups[-1][weight.name.format(layer)] = weight.shape
      used, total = used + size, total + size
  count = len(groups)
  names = [files.single]
  if count > 1:
    names = [files.shard(number + 1, count) for number in range(count)]
  for name, shapes in zip(names, groups, strict=True):
    write_safetensors(folder / name, shapes, dtype, tensors)
  if count > 1:
    where = {key: n for n, group in zip(names, groups) for key in group}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / files.index, index)


def start_folder(folder: pathlib.Path) -> pathlib.Path:
  """An empty folder beside `folder`, for `replace_folder`."""
  partial = folder.with_name(f".{folder.name}.partial")
  if jax.process_index() == 0:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
  return partial


def check_replaceable(folder: pathlib.Path, has: str = "config.json") -> None:
  """Raises UserError for a folder that is not one of ours to replace."""
  if not folder.exists() or (folder / has).is_file():
    return
  if not folder.is_dir() or any(folder.iterdir()):
    raise UserError(
      f"{folder}: exists and is not a model folder (it has no {has}), so "
      "it is not replaced. Remove it, or choose another place."
    )


def gather(leaf: jax.Array) -> np.ndarray:
  """The whole array on the host; takes all processes."""
  if leaf.is_fully_addressable:
    return np.asarray(leaf)
  if leaf.is_fully_replicated:
    return np.asarray(leaf.addressable_data(0))
  return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def replace_folder(folder: pathlib.Path, partial: pathlib.Path) -> None:
  """Gives `partial` the name `folder`, in place of what has it."""
  earlier = folder.with_name(f".{folder.name}.earlier")
  shutil.rmtree(earlier, ignore_errors=True)
  with contextlib.suppress(FileNotFoundError):
    os.replace(folder, earlier)
  os.replace(partial, folder)
  shutil.rmtree(earlier, ignore_errors=True)


def _tensors(
  definition: Definition, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  dtype = jax.tree.leaves(params)[0].dtype  # a reward head has its own
  for weight in definition.table:
    layer, leaf = at(params, weight.path[:-1]), at(params, weight.path)
    if weight.path[-1] == "kernel" and "lora_a" in layer:
      # One at a time: a copy of all would be a second model.
      leaf = merged_kernel(layer, definition.lora, stacked=weight.stacked)
    elif weight.path[-1] == "kernel":
      leaf = whole_kernel(layer, jnp.bfloat16)
    array = gather(leaf).astype(dtype, copy=False)
    for number in range(len(array) if weight.stacked else 1):
      part = array[number] if weight.stacked else array
      yield weight.name.format(number), weight.theirs(part)


def _write_configs(
  folder: pathlib.Path,
  definition: Definition,
  params: Params,
  pad_token: tuple[int, str] | None,
) -> None:
  dtype = str(jax.tree.leaves(params)[0].dtype)
  config = definition.config.to_hf(dtype=dtype)
  if definition.rewards:
    pad_id = pad_token and pad_token[0]
    config = to_classifier(config, definition.rewards, pad_id)
  write_json(folder / "config.json", config)
  ids = ("bos_token_id", "eos_token_id", "pad_token_id")
  known = {key: config[key] for key in ids if config[key] is not None}
  if known and not definition.rewards:
    write_json(folder / "generation_config.json", known)


def _copy_tokenizer(
  folder: pathlib.Path,
  definition: Definition,
  tokenizer_folder: str | pathlib.Path,
  pad_token: tuple[int, str] | None,
) -> None:
  own = () if definition.rewards else ("generation_config.json",)
  for name in (*_TOKENIZER_FILES, *own):
    source = pathlib.Path(tokenizer_folder) / name
    if source.is_file():
      shutil.copyfile(source, folder / name)
  for name in _TOKENIZER_CONFIGS:
    path = folder / name
    if pad_token and path.is_file():
      given = json.loads(path.read_text(encoding="utf-8"))
      write_json(path, {**given, "pad_token": pad_token[1]})
