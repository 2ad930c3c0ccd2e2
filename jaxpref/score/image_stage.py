"""The stage `score` for images: records of images to ranked records.

Every image of `data.path` is rated by each model of `score.models`, and
`scored.parquet` has the same images with their scores, which the stage `fit`
reads as `data.path`. What the data say of the images themselves is left out:
the scores take its place.

Images are rated in parts, each written as it is whole, so that what was stopped
goes on (and decodes again, which is little beside rating); processes share the
parts out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxpref import config
from jaxpref.data import read
from jaxpref.data.build import Tally, records
from jaxpref.data.pictured import Pictured, decoded
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.hosts import say
from jaxpref.models.source import folder_digest
from jaxpref.sample.image_stage import write_config
from jaxpref.score.clip import ClipScorer
from jaxpref.score.combine import ensemble, votes
from jaxpref.score.raters import RATERS
from jaxpref.types import Image, Record, Video

SCORED = "scored.parquet"
_PER_PART = 64  # records

Scorer = Callable[[Sequence[Any], Sequence[str]], Any]
"""From images and what each shows, a number for each."""


def score_images(
  settings: config.Config, workdir: pathlib.Path
) -> pathlib.Path:
  """Rates the images of `data.path`; returns the file of scored records.

  Of images of one prompt in several files, as several models made them, the
  record is one where the files are `samples.jsonl` of the stage `sample`.

  Raises UserError for models that cannot be used, data without images, and
  more refused rows than data.max_rejected.
  """
  scorers = open_scorers(settings.score)
  if not scorers:
    raise UserError(
      "The stage 'score' needs something that rates images: name folders of "
      "models, as --config.score.models.pickscore=FOLDER, or set "
      "config.score.rater."
    )
  files = read.source_files(settings.data.path)
  write_config(settings, workdir)
  place = workdir / "scores" / _key(settings, files)
  place.mkdir(parents=True, exist_ok=True)
  count = 0
  for number, group in enumerate(_parts(_records(files, settings.data))):
    count += len(group)
    part = place / f"part-{number:06d}.json"
    mine = number % jax.process_count() == jax.process_index()
    if mine and not part.exists():
      with replacing(part) as partial:
        partial.write_text(
          json.dumps([_rated(each, scorers) for each in group])
        )
      say(f"Rated the images of {count:,} prompts.")
  if not count:
    raise UserError(f"{settings.data.path}: no row has images to rate.")
  _wait()
  out = workdir / SCORED
  if jax.process_index() == 0:
    _write(out, _records(files, settings.data), _read(place), list(scorers))
  _wait()
  return out


def open_scorers(settings: config.Score) -> dict[str, Scorer]:
  """By the names that the scores get."""
  scorers: dict[str, Scorer] = {
    name: ClipScorer(folder) for name, folder in settings.models.items()
  }
  if rater := settings.rater:
    one = RATERS[rater]
    scorers[rater] = lambda images, texts: [float(one(each)) for each in images]
  return scorers


def _key(settings: config.Config, files: Sequence[read.Source]) -> str:
  """Of all that the scores depend on."""
  models = {
    name: folder_digest(folder, "config.json", "preprocessor_config.json")
    for name, folder in settings.score.models.items()
  }
  data = [[file.name, file.digest()] for file in files]
  parts = [models, settings.score.rater, data, settings.data.format]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _records(
  files: Sequence[read.Source], data: config.Data
) -> Iterator[Pictured]:
  """Those with images, in an order that is the same each time."""
  tally, refusals = Tally(), list[read.Refusal]()
  found = records(files, data.format, tally, refusals.append)
  first = next(found, None)
  stream: Iterator[Record] = itertools.chain([first] if first else [], found)
  if tally.formats["sampled"]:
    stream = iter(_gathered(stream))
  yield from decoded(stream, tally, refusals.append)
  if len(refusals) > data.max_rejected * tally.rows:
    told = "; ".join(f"{x.file}:{x.row}: {x.reason}" for x in refusals[:3])
    raise UserError(
      f"{data.path}: {len(refusals)} of {tally.rows} rows are refused, and "
      f"data.max_rejected={data.max_rejected:g} allows "
      f"{int(data.max_rejected * tally.rows)}. The first: {told}."
    )


def _gathered(stream: Iterator[Record]) -> list[Record]:
  """One record for each prompt, in the order in which prompts come first."""
  by_prompt: dict[str, Record] = {}
  for each in stream:
    known = by_prompt.setdefault(prompt := str(each.prompt), each)
    if known is not each:
      responses = [*known.responses, *each.responses]
      by_prompt[prompt] = dataclasses.replace(known, responses=responses)
  return list(by_prompt.values())


def _parts(stream: Iterator[Pictured]) -> Iterator[list[Pictured]]:
  while group := list(itertools.islice(stream, _PER_PART)):
    yield group


def _rated(found: Pictured, scorers: Mapping[str, Scorer]) -> list[list[float]]:
  """A row of scores for each image."""
  texts = [str(found.record.prompt)] * len(found.pixels)
  columns = [scorer(found.pixels, texts) for scorer in scorers.values()]
  return np.array(columns, np.float32).T.tolist()


def _read(place: pathlib.Path) -> list[np.ndarray]:
  """The scores of each record."""
  files = sorted(place.glob("part-*.json"))
  parts = [json.loads(path.read_text()) for path in files]
  return [np.array(rows, np.float64) for part in parts for rows in part]


def _write(
  out: pathlib.Path,
  found: Iterator[Pictured],
  scores: Sequence[np.ndarray],
  names: Sequence[str],
) -> None:
  import pyarrow as pa
  from pyarrow import parquet

  axes = [*names, *(("votes", "ensemble") if len(names) > 1 else ())]
  number, text = pa.float64(), pa.string()
  image = pa.struct({"bytes": pa.binary(), "path": text})
  response = pa.struct(
    {
      "content": pa.struct({"image": image}),
      "scores": pa.struct(dict.fromkeys(axes, number)),
    }
  )
  schema = pa.schema({"prompt": text, "responses": pa.list_(response)})
  whole = ensemble(scores)
  with (
    replacing(out) as partial,
    parquet.ParquetWriter(partial, schema) as writer,
  ):
    numbered = zip(found, scores, whole, strict=True)
    while group := list(itertools.islice(numbered, _PER_PART)):
      rows = [_row(*each, axes) for each in group]
      writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(
  found: Pictured, own: np.ndarray, whole: np.ndarray, axes: Sequence[str]
) -> dict[str, Any]:
  columns = np.column_stack([own, votes(own), whole])
  return {
    "prompt": str(found.record.prompt),
    "responses": [
      {
        "content": {"image": _stored(response.content)},
        "scores": dict(zip(axes, line, strict=False)),
      }
      for response, line in zip(
        found.record.responses, columns.tolist(), strict=True
      )
    ],
  }


def _stored(content: Any) -> dict[str, Any]:
  image = content.still if isinstance(content, Video) else content
  assert isinstance(image, Image)  # `decoded` refuses else
  return {"bytes": image.data or None, "path": image.path or None}


def _wait() -> None:
  """Until all processes are here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("jaxpref.scores")
