"""Files of prompts."""

import json
import pathlib
from typing import Any

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
  try:
    # Not splitlines, which ends lines inside of texts too.
    lines = path.read_text(encoding="utf-8").split("\n")
  except UnicodeDecodeError as error:
    raise UserError(
      f"config.sample.prompts: {path} is not UTF-8 text: {error}."
    ) from error
  if path.suffix != ".jsonl":
    prompts = [line for line in lines if line.strip()]
  else:
    prompts = []
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        prompts.append(json.loads(line)["prompt"])
      except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(
          f"{path}, line {number}: not a JSON object with `prompt`."
        ) from None
  if not prompts:
    raise UserError(f"config.sample.prompts: {path} holds no prompt.")
  return prompts
