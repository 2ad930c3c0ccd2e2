"""Files of prompts."""

from collections.abc import Iterator
import itertools
import pathlib
from typing import Any

from jaxpref.data.containers import Damaged, read_text
from jaxpref.data.read import READERS, Refusal, Source, reader
from jaxpref.errors import UserError

KINDS = (
  "a text file with a prompt a line, or rows with `prompt` or `caption` in "
  "each (.jsonl, .json, .parquet …)"
)
"""Which files hold prompts, for messages."""


def read_prompts(path: pathlib.Path, most: int | None = None) -> list[Any]:
  """Prompts of a file: `prompt` or else `caption` of each row.

  What no reader of data is for by its name, as a .txt file, has one a line;
  lines with nothing on them are passed over.

  Args:
    path: of the file.
    most: how many, the first of them; None for all.

  Raises UserError for a file or a row that holds none.
  """
  if not path.is_file():
    raise UserError(
      f"config.sample.prompts: there is no file {path}. Give {KINDS}."
    )
  try:
    prompts = list(itertools.islice(_prompts(path), most))
  except (Damaged, OSError) as error:
    raise UserError(
      f"config.sample.prompts: {path} cannot be read: {error}. Write it again, "
      "or name another file."
    ) from error
  if not prompts and most != 0:
    raise UserError(
      f"config.sample.prompts: {path} holds no prompt. Write one, or name "
      "another file."
    )
  return prompts


def read_captions(path: pathlib.Path, most: int | None = None) -> list[str]:
  """As `read_prompts`, of texts alone, as images are made of."""
  prompts = read_prompts(path, most)
  for number, prompt in enumerate(prompts):
    if not isinstance(prompt, str):
      raise UserError(
        f"config.sample.prompts: {path}, prompt {number} is a "
        f"{type(prompt).__name__}; images are made of texts."
      )
  return prompts


def _prompts(path: pathlib.Path) -> Iterator[Any]:
  file = Source(str(path), path.name)
  known = file.kind.endswith(tuple(READERS))
  for row in (reader(file) if known else read_text)(file):
    if isinstance(row, Refusal):
      raise UserError(
        f"config.sample.prompts: {path}, line {row.row}: {row.reason}."
      )
    given = (row.values.get(name) for name in ("prompt", "caption"))
    prompt = next((each for each in given if each is not None), None)
    if prompt is None:
      raise UserError(
        f"config.sample.prompts: {path}, line {row.number}: nothing is in "
        "`prompt` or `caption`; its columns are "
        f"{', '.join(row.values) or 'none'}."
      )
    yield prompt
