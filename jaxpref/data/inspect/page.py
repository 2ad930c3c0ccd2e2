"""The findings as one self-contained HTML page."""

import pathlib
from typing import Any

import jinja2

from jaxpref.data.inspect.charts import histograms
from jaxpref.data.inspect.measure import Findings
from jaxpref.data.inspect.spans import spans
from jaxpref.data.inspect.tables import sections
from jaxpref.files import replacing

_REFUSALS_SHOWN = 20


def write_page(
  file: pathlib.Path,
  found: Findings,
  tokenizer: Any,
  path: str,
  max_length: int,
) -> None:
  """Writes tables, plots and the tokens of some examples to `file`."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxpref.data.inspect", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template("page.html.jinja").render(
    path=path,
    name=pathlib.PurePath(path).name or path,
    sections=sections(found, max_length),
    charts=list(histograms(found)) if found.prompt_lengths else [],
    examples=[
      (
        record.id,
        [spans(tokenizer, tokens, j) for j in range(len(tokens.responses))],
      )
      for record, tokens in found.examples
    ],
    refusals=found.refusals[:_REFUSALS_SHOWN],
    refused=len(found.refusals),
  )
  with replacing(file) as partial:
    # A lone surrogate, which JSON can hold, has no UTF-8.
    partial.write_text(page, encoding="utf-8", errors="replace")
