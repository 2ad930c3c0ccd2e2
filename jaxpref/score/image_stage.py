"""The stage `score` for images: records of images to ranked records.

Every image of `data.path` is rated by each model of `score.models`, and
`scored.parquet` has the same images with their scores, which the stage `fit`
reads as `data.path`. What the data say of the images themselves is left out:
the scores take its place.

Images are rated in parts, each written as it is whole and known by its pixels
and prompts, so that what was stopped goes on (and decodes again, which is
little beside rating); processes share the parts out.
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
from jaxpref.data import formats, read
from jaxpref.data.build import Tally, records
from jaxpref.data.cache import REJECTED
from jaxpref.data.pictured import Pictured, decoded
from jaxpref.data.pictures import encoded_bytes
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.hosts import say, wait_for_all
from jaxpref.models.source import folder_digest
from jaxpref.sample.image_stage import write_config
from jaxpref.score.clip import open_scorer
from jaxpref.score.combine import ensemble, votes
from jaxpref.score.raters import RATERS
from jaxpref.types import Image, Record, Video

SCORED = "scored.parquet"
_PER_PART = 32  # records
_VERSION = 1  # of the scores; change it when the same inputs give others

Scorer = Callable[[Sequence[Any], Sequence[str]], Any]
"""From images and what each shows, a number for each."""


def score_images(
  settings: config.Config, workdir: pathlib.Path
) -> pathlib.Path:
  """Rates the images of `data.path`; returns the file of scored records.

  Of images of one prompt in several files, as several models made them, the
  record is one where the files are `samples.jsonl` of the stage `sample`.

  Rows that cannot be used are listed in `rejected.jsonl`.

  Raises UserError for models that cannot be used, data without images, and
  more refused rows than data.max_rejected.
  """
  scorers = needed_scorers(settings.score)
  formats.check_format(settings.data.format)
  files = read.source_files(settings.data.path)
  write_config(settings, workdir)
  place = workdir / "scores" / _key(settings.score)
  place.mkdir(parents=True, exist_ok=True)
  tally, refused = Tally(), list[read.Refusal]()
  count, parts = 0, list[pathlib.Path]()
  stream = _records(files, settings.data.format, tally, refused.append)
  for number, group in enumerate(_groups(stream)):
    count += len(group)
    parts.append(place / f"{_digest(group)}.json")
    mine = number % jax.process_count() == jax.process_index()
    if mine and not parts[-1].exists():
      with replacing(parts[-1]) as partial:
        partial.write_text(json.dumps(_rated(group, scorers)))
      say(f"Rated the images of {count:,} prompts.")
  _tell_refused(settings.data, tally, refused, workdir / REJECTED)
  if not count:
    raise UserError(f"{settings.data.path}: no row has images to rate.")
  wait_for_all()
  out = workdir / SCORED
  if jax.process_index() == 0:
    again = _records(files, settings.data.format, Tally(), lambda _: None)
    _write(out, again, _read(parts), list(scorers))
  wait_for_all()
  return out


def needed_scorers(settings: config.Score) -> dict[str, Scorer]:
  """Those of `open_scorers`; raises UserError where there is none."""
  if scorers := open_scorers(settings):
    return scorers
  raise UserError(
    "The stage 'score' needs something that rates images: name folders of "
    "models, as --config.score.models.pickscore=FOLDER, or set "
    "config.score.rater."
  )


def open_scorers(settings: config.Score) -> dict[str, Scorer]:
  """By the names that the scores get."""
  scorers: dict[str, Scorer] = {
    name: open_scorer(folder) for name, folder in settings.models.items()
  }
  if rater := settings.rater:
    one = RATERS[rater]
    scorers[rater] = lambda images, texts: [float(one(each)) for each in images]
  return scorers


def _key(settings: config.Score) -> str:
  """Of what rates."""
  models = {
    name: folder_digest(folder, *_files_of(pathlib.Path(folder)))
    for name, folder in settings.models.items()
  }
  parts = [_VERSION, models, settings.rater]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _files_of(folder: pathlib.Path) -> list[str]:
  """What decides the scores beside the weights."""
  names = ("config.json", "preprocessor_config.json", "tokenizer.json",
           "tokenizer_config.json", "vocab.json", "merges.txt")  # fmt: skip
  return [name for name in names if (folder / name).is_file()]


def _records(
  files: Sequence[read.Source],
  name: str,
  tally: Tally,
  refuse: Callable[[read.Refusal], None],
) -> Iterator[Pictured]:
  """Those with images, in an order that is the same each time."""
  found = records(files, name, tally, refuse)
  first = next(found, None)
  stream: Iterator[Record] = itertools.chain([first] if first else [], found)
  if tally.formats["sampled"]:
    stream = iter(_gathered(stream))
  yield from decoded(stream, tally, refuse)


def _tell_refused(
  data: config.Data,
  tally: Tally,
  refused: Sequence[read.Refusal],
  rejected: pathlib.Path,
) -> None:
  """Says and lists what is not used; raises UserError where it is too much."""
  if jax.process_index() == 0:
    with replacing(rejected) as partial:
      lines = (json.dumps(each._asdict()) + "\n" for each in refused)
      partial.write_text("".join(lines))
  kinds = [*tally.refused.items(), *tally.dropped.items()]
  if kinds:
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    say(f"Of {tally.rows:,} rows not used: {told}.")
  if len(refused) > data.max_rejected * tally.rows:
    first = "; ".join(f"{x.file}:{x.row}: {x.reason}" for x in refused[:3])
    raise UserError(
      f"{data.path}: {len(refused)} of {tally.rows} rows are refused, and "
      f"data.max_rejected={data.max_rejected:g} allows "
      f"{int(data.max_rejected * tally.rows)}. The first: {first}. All are "
      f"listed in {rejected}. Mend the rows, or raise config.data.max_rejected "
      "to leave them out."
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


def _groups(stream: Iterator[Pictured]) -> Iterator[list[Pictured]]:
  while group := list(itertools.islice(stream, _PER_PART)):
    yield group


def _digest(group: Sequence[Pictured]) -> str:
  """Of what is rated: a file of the same name may hold other images."""
  found = hashlib.sha256()
  for each in group:
    found.update(json.dumps(each.record.prompt).encode())
    for pixels in each.pixels:
      found.update(f"{pixels.shape}".encode() + pixels.tobytes())
  return found.hexdigest()[:32]


def _rated(
  group: Sequence[Pictured], scorers: Mapping[str, Scorer]
) -> list[list[list[float]]]:
  """Of each record a row of scores for each image."""
  pixels = [image for each in group for image in each.pixels]
  texts = [str(each.record.prompt) for each in group for _ in each.pixels]
  columns = [scorer(pixels, texts) for scorer in scorers.values()]
  rows = iter(np.array(columns, np.float32).T.tolist())
  return [[next(rows) for _ in each.pixels] for each in group]


def _read(parts: Sequence[pathlib.Path]) -> list[np.ndarray]:
  """The scores of each record."""
  read = (json.loads(path.read_text()) for path in parts)
  return [np.array(rows, np.float64) for part in read for rows in part]


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
  """Of a video the frame that was rated, as an image."""
  image = content.still if isinstance(content, Video) else content
  assert isinstance(image, Image)  # `decoded` refuses else
  if image.at:
    return {"bytes": encoded_bytes(image), "path": None}
  return {"bytes": image.data or None, "path": image.path or None}
