"""Files of prompts."""

import json
import pathlib
from typing import Any

from jaxpref.data.containers import Refusal, read_text
from jaxpref.data.source import Source
from jaxpref.errors import UserError


def read_prompts(path: pathlib.Path) -> list[Any]:
  """Prompts of a text file, one a line, or of JSONL with `prompt`.

  Lines with nothing on them are passed over.
  """
  if not path.is_file():
    raise UserError(
      f"config.sample.prompts: there is no file {path}. Give a text file with "
      "a prompt a line, or a .jsonl file with `prompt` in each row."
    )
  prompts = []
  for row in read_text(Source(str(path), path.name)):
    if isinstance(row, Refusal):
      raise UserError(
        f"config.sample.prompts: {path}, line {row.row}: {row.reason}."
      )
    prompt = row.values["prompt"]
    if path.suffix == ".jsonl":
      try:
        prompt = json.loads(prompt)["prompt"]
      except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(
          f"{path}, line {row.number}: not a JSON object with `prompt`."
        ) from None
    prompts.append(prompt)
  if not prompts:
    raise UserError(f"config.sample.prompts: {path} holds no prompt.")
  return prompts
