"""The findings on a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any
import unicodedata

from jaxpref.data.inspect.measure import Findings
from jaxpref.data.inspect.spans import Span, spans
from jaxpref.data.inspect.tables import Section, sections

# Two shades a role, so that neighbours are told apart.
_COLORS = {"prompt": (254, 250), "response": (158, 121)}
_SPECIAL = 216


def text(found: Findings, tokenizer: Any, max_length: int, color: bool) -> str:
  """All tables, then the tokens of the examples."""
  parts = [_tables(sections(found, max_length))]
  for record, tokens in found.examples:
    for number in range(len(tokens.responses)):
      shown = spans(tokenizer, tokens, number)
      if number:  # the prompt is the same
        shown = [each for each in shown if each.role == "response"]
      title = f"{record.id}, response {number + 1} of {len(tokens.responses)}"
      parts.append(f"{title}\n{''.join(_paint(shown, color))}")
  return "\n\n".join([*parts, *_refusals(found)])


def tables(found: Findings, parts: Sequence[Section]) -> str:
  """Those tables alone, and what was refused."""
  return "\n\n".join([_tables(parts), *_refusals(found)])


def _refusals(found: Findings) -> Iterator[str]:
  if found.refusals:
    told = [f"  {r.file}:{r.row}: {r.reason}" for r in found.refusals[:5]]
    yield "\n".join(["Refused, the first:", *map(printable, told)])


def _tables(parts: Sequence[Section]) -> str:
  lines = []
  for section in parts:
    lines.append(f"\n{section.title}")
    for name, value, help in section.lines:
      lines.append(f"  {name:<28} {value:<22} {help}".rstrip())
  return printable("\n".join(lines).strip("\n"))


def _paint(shown: list[Span], color: bool) -> Iterator[str]:
  for place, span in enumerate(shown):
    piece = printable(span.text).replace("\n", "⏎\n")
    if not color:
      yield f"[{piece}]" if span.role == "response" else piece
      continue
    shade = _SPECIAL if span.special else _COLORS[span.role][place % 2]
    for line in piece.splitlines(keepends=True):
      text, end = line.rstrip("\n"), "\n" * line.endswith("\n")
      yield f"\x1b[30;48;5;{shade}m{text}\x1b[0m{end}"


def printable(text: str) -> str:
  """Without the control characters by which data could steer a terminal."""
  return "".join(
    c if c == "\n" or unicodedata.category(c)[0] != "C" else "\ufffd"
    for c in text
  )
