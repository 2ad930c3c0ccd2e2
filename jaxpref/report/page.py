"""A run folder as one HTML page, with nothing loaded from elsewhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import pathlib
import shlex
from typing import Any

import jinja2

from jaxpref.files import replacing
from jaxpref.report.curves import curves
from jaxpref.report.numbers import number
from jaxpref.report.read import (
  Row,
  finite,
  read_lines,
  read_object,
  series,
  step_of,
)
from jaxpref.report.results import headline, results
from jaxpref.report.samples import prompts

_PROMPTS_SHOWN = 4  # the others are folded together


def write_report(workdir: pathlib.Path) -> pathlib.Path:
  """Writes report.html of a run folder.

  Reads config.json, data.json, metrics.jsonl and samples/samples.jsonl. What
  is missing is left out of the page, and so are values that are not finite.

  Returns: the page; it replaces an earlier one at once.
  """
  settings = read_object(workdir / "config.json")
  data = read_object(workdir / "data.json")
  lines = read_lines(workdir / "metrics.jsonl")
  samples = read_lines(workdir / "samples" / "samples.jsonl")
  rows = results(lines, samples)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxpref.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template("page.html.jinja").render(
    name=workdir.resolve().name,
    loss=_loss_name(settings),
    facts=list(_facts(settings, lines)),
    headline=headline(lines, rows),
    results=rows,
    charts=curves(lines, _loss_name(settings)),
    gaps=_gaps(lines),
    prompts=prompts(samples, workdir / "samples"),
    prompts_shown=_PROMPTS_SHOWN,
    data=_data_table(data),
    held_out=_held_out(data),
    settings=_sections(settings),
    command="python -m jaxpref.launch "
    f"--config={shlex.quote(str(workdir / 'rerun.py'))} --workdir=NEW_FOLDER",
  )
  target = workdir / "report.html"
  with replacing(target) as partial:
    # A lone surrogate, which JSON can hold, has no UTF-8.
    partial.write_text(page, encoding="utf-8", errors="replace")
  return target


def _loss_name(settings: Mapping[str, Any]) -> str:
  loss = settings.get("loss")
  return str(loss.get("name", "")) if isinstance(loss, Mapping) else ""


def _facts(
  settings: Mapping[str, Any], lines: Sequence[Row]
) -> Iterator[tuple[str, str]]:
  """What the run was, in a few words each."""
  if isinstance(model := settings.get("model"), Mapping):
    parts = pathlib.PurePath(str(model.get("path") or "")).parts[-2:]
    yield "model", "/".join(parts) or "random weights"
  if isinstance(loss := settings.get("loss"), Mapping):
    options = [f"{key} {loss[key]}" for key in loss if key != "name"]
    yield "loss", ", ".join([_loss_name(settings), *options])
  if lines:
    yield "steps", f"{max(map(step_of, lines)):,}"
  for key, name in (
    ("pairs_per_second", "pairs/s"),
    ("tokens_per_second", "tokens/s"),
    ("images_per_second", "images/s"),
  ):
    speeds = sorted(value for _, value in series(lines, key) if value > 0)
    if speeds:  # the median: the first step compiles
      yield name, number(speeds[len(speeds) // 2], 3)


def _gaps(lines: Sequence[Row]) -> str:
  """Which measures were not finite, as a sentence; '' where all were."""
  first: dict[str, int] = {}
  for line in lines:
    for key, value in line.items():
      if value is None or (isinstance(value, float) and finite(value) is None):
        first.setdefault(key, step_of(line))
  names = ", ".join(f"{key} (first at step {step})"
                    for key, step in first.items())  # fmt: skip
  return f"Values that are not finite are left out: {names}." if names else ""


def _held_out(data: Mapping[str, Any]) -> str:
  """What data.json says of examples held out of the training file; or ''."""
  match data.get("eval"):
    case {"examples": int(count), **rest} if not rest:
      return f"{count:,}"
  return ""


def _data_table(
  data: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, list[str]]]]:
  """Column names, and rows of a name and a cell a column."""
  if _held_out(data):
    data = {name: part for name, part in data.items() if name != "eval"}
  parts = {k: v if isinstance(v, Mapping) else {k: v} for k, v in data.items()}
  columns = {name: dict(_flatten(part, _cell)) for name, part in parts.items()}
  names = dict.fromkeys(name for column in columns.values() for name in column)
  return list(columns), [
    (
      name.replace("_", " ").replace(".", ": "),
      [column.get(name, "–") for column in columns.values()],
    )
    for name in names
  ]


def _sections(
  settings: Mapping[str, Any],
) -> list[tuple[str, list[tuple[str, str]]]]:
  """The config's sections, and in `run` what is in none."""
  parts = {k: v for k, v in settings.items() if isinstance(v, Mapping)}
  rest = {k: v for k, v in settings.items() if k not in parts}
  if rest:
    parts["run"] = rest
  return [(name, list(_flatten(part, _plain))) for name, part in parts.items()]


def _flatten(
  tree: Mapping[str, Any], text: Callable[[Any], str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, text, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", text(value)


def _cell(value: Any) -> str:
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  if value == {}:
    return "none"
  return number(value) if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> str:
  if isinstance(value, str):
    return value or "''"
  return json.dumps(value, ensure_ascii=False)
