"""The findings as one self-contained HTML page."""

import base64
from collections.abc import Iterator, Sequence
import io
import pathlib
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from jaxpref.data.inspect import charts, images
from jaxpref.data.inspect.measure import Findings
from jaxpref.data.inspect.spans import spans
from jaxpref.data.inspect.tables import Section, sections
from jaxpref.data.pictured import Pictured
from jaxpref.data.pictures import decode
from jaxpref.files import replacing
from jaxpref.types import Video

_REFUSALS_SHOWN = 20
_SIDE = 256  # pixels of an image's longer side, at most
_FRAMES = 5  # of a video that are shown


def write_page(
  file: pathlib.Path,
  found: Findings,
  tokenizer: Any,
  path: str,
  max_length: int,
) -> None:
  """Writes tables, plots and the tokens of some examples to `file`."""
  examples = [
    (
      record.id,
      [spans(tokenizer, tokens, j) for j in range(len(tokens.responses))],
    )
    for record, tokens in found.examples
  ]
  plots = charts.histograms(found) if found.prompt_lengths else ()
  parts = sections(found, max_length)
  _write(file, found, path, parts, list(plots), examples=examples)


def write_image_page(
  file: pathlib.Path, found: images.ImageFindings, path: str
) -> None:
  """Writes tables, plots of scores and some images to `file`."""
  pictures = [
    (each.record.id, each.record.prompt, list(_captioned(each)))
    for each in found.shown
  ]
  parts, plots = images.sections(found), list(charts.scores(found))
  _write(file, found, path, parts, plots, pictures=pictures)


def _captioned(shown: Pictured) -> Iterator[tuple[str, int, str]]:
  """Of each image a small copy as a data URI, its width, and what it is."""
  record, pixels = shown
  for number, each in enumerate(pixels):
    told = [f"{each.shape[1]} × {each.shape[0]}"]
    for better, worse, preference, _ in record.comparisons:
      if number not in (better, worse):
        continue
      if preference == 0.5:
        told.append(f"tie with {worse + better - number + 1}")
      elif number == better:
        told.append(f"better than {worse + 1}: {preference:.0%}")
    response = record.responses[number]
    told += [f"{name} {score:g}" for name, score in response.scores.items()]
    if isinstance(response.content, Video):
      told.insert(0, f"{len(response.content.frames)} frames")
      small = _thumbnail(_strip(response.content), _FRAMES)
    else:
      small = _thumbnail(each)
    yield *small, f"{number + 1}. {', '.join(told)}"


def _strip(video: Video) -> np.ndarray:
  """Up to _FRAMES frames side by side, as small as they are shown."""
  count = len(video.frames)
  places = np.linspace(0, count - 1, min(count, _FRAMES)).astype(int)
  frames = [PIL.Image.fromarray(decode(video.frames[i])) for i in places]
  for frame in frames:
    frame.thumbnail((_SIDE, _SIDE))
  height = min(frame.height for frame in frames)
  return np.concatenate([np.asarray(f)[:height] for f in frames], axis=1)


def _thumbnail(pixels: np.ndarray, frames: int = 1) -> tuple[str, int]:
  small = PIL.Image.fromarray(pixels)
  small.thumbnail((_SIDE * frames, _SIDE))
  small.save(data := io.BytesIO(), "JPEG", quality=80)
  text = base64.b64encode(data.getvalue()).decode()
  return f"data:image/jpeg;base64,{text}", small.width


def _write(
  file: pathlib.Path,
  found: Findings,
  path: str,
  parts: Sequence[Section],
  plots: Sequence[charts.Histogram],
  examples: Sequence[Any] = (),
  pictures: Sequence[Any] = (),
) -> None:
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
    sections=parts,
    charts=plots,
    examples=examples,
    pictures=pictures,
    refusals=found.refusals[:_REFUSALS_SHOWN],
    refused=len(found.refusals),
  )
  with replacing(file) as partial:
    # A lone surrogate, which JSON can hold, has no UTF-8.
    partial.write_text(page, encoding="utf-8", errors="replace")
