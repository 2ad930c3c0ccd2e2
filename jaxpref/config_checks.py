"""What values of settings go together, where that takes more than a table."""

import math
from typing import Any

from jaxpref.errors import UserError


def check_sources(data: Any) -> None:
  """Raises UserError where `data.sources` is not a mixture to train on."""
  sources = data.sources
  if sources and (data.path or data.format != "auto"):
    raise UserError(
      "config.data.sources names the data, and config.data.path or "
      "config.data.format is set too. Each source has a path and a format of "
      "its own; leave those of config.data as they are by default."
    )
  for name, each in sources.items():
    if not each.path:
      raise UserError(f"config.data.sources.{name} has no path; give one.")
    if not 0 <= each.weight < math.inf:
      raise UserError(
        f"config.data.sources.{name}.weight is {each.weight}; it must be a "
        "number above 0, or 0 for all sources."
      )
  zero = [name for name, each in sources.items() if each.weight == 0]
  if zero and len(zero) < len(sources):
    raise UserError(
      f"config.data.sources gives no weight to {', '.join(zero)}. Give one to "
      "every source, or to none: each example then comes once an epoch."
    )


def check_lora(lora: Any) -> None:
  """Raises UserError where `model.lora` is no adapter, nor switched off."""
  if lora.rank < 0:
    raise UserError(
      f"config.model.lora.rank is {lora.rank}; it must not be negative, and 0 "
      "trains all weights instead of an adapter."
    )
  if not lora.alpha > 0:
    raise UserError(
      f"config.model.lora.alpha is {lora.alpha}; it must be above 0, or the "
      "adapter would change nothing."
    )
  if not 0 <= lora.dropout < 1:
    raise UserError(
      f"config.model.lora.dropout is {lora.dropout}; it must be at least 0 and "
      "below 1."
    )
  if not (lora.rank or lora.path) and lora != type(lora)():
    raise UserError(
      "config.model.lora is given without a rank, and without one all weights "
      "would train. Set config.model.lora.rank, for example to 16."
    )
