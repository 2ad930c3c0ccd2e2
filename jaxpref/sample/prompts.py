"""Files of prompts."""

import pathlib
from typing import Any

from jaxpref.data.containers import read_text
from jaxpref.data.read import READERS, Refusal, Source, read_rows
from jaxpref.errors import UserError


def read_prompts(path: pathlib.Path) -> list[Any]:
  """Prompts of a file: `prompt` or else `caption` of each row.

  What no reader of data is for by its name, as a .txt file, has one a line;
  lines with nothing on them are passed over.

  Raises UserError for a file or a row that holds none.
  """
  if not path.is_file():
    raise UserError(
      f"config.sample.prompts: there is no file {path}. Give a text file with "
      "a prompt a line, or rows with `prompt` or `caption` in each (.jsonl, "
      ".json, .parquet …)."
    )
  file, prompts = Source(str(path), path.name), []
  known = file.kind.endswith(tuple(READERS))
  for row in read_rows([file]) if known else read_text(file):
    if isinstance(row, Refusal):
      raise UserError(
        f"config.sample.prompts: {path}, line {row.row}: {row.reason}."
      )
    names = [name for name in ("prompt", "caption") if name in row.values]
    if not names:
      raise UserError(
        f"config.sample.prompts: {path}, line {row.number}: it has neither "
        f"`prompt` nor `caption`, but {', '.join(map(str, row.values))}."
      )
    prompts.append(row.values[names[0]])
  if not prompts:
    raise UserError(f"config.sample.prompts: {path} holds no prompt.")
  return prompts
