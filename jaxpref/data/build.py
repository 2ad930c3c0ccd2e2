"""Writes one prepared folder: read, refuse, tokenise, store."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np

from jaxpref import config
from jaxpref.data import formats, read, text, tokenizer
from jaxpref.data.arrays import ArrayWriter, Spool
from jaxpref.data.cache import ARRAYS, MANIFEST, REJECTED
from jaxpref.data.read import Refusal
from jaxpref.errors import UserError
from jaxpref.types import PICTURES, Record, Response

_BATCH = 512  # rows tokenised at a time


def write_folder(
  folder: pathlib.Path,
  files: Sequence[read.Source],
  data: config.Data,
  tokenizer_folder: str,
  depends: Mapping[str, Any],
) -> None:
  rules = tokenizer.Rules(tokenizer.load(tokenizer_folder))
  names = {file.name: number for number, file in enumerate(files)}
  tally, table = Tally(), Table(folder, names)
  try:
    with open(folder / REJECTED, "w") as rejected:

      def refuse(refusal: Refusal) -> None:
        rejected.write(json.dumps(refusal._asdict()) + "\n")

      for record, tokens in tokenized(files, data, rules, tally, refuse):
        table.append(record, tokens)
    fingerprint, counts = table.close()
  finally:
    table.abandon()
  manifest = {
    "files": list(names),
    "formats": formats.explain(tally.formats),
    "axes": table.axes,
    "fingerprint": fingerprint,
    "stats": tally.stats() | counts,
    "depends": depends,
  }
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def tokenized(
  files: Sequence[read.Source],
  data: config.Data,
  rules: tokenizer.Rules,
  tally: "Tally",
  tell: Callable[[Refusal], None],
) -> Iterator[tuple[Record, text.Tokens]]:
  """The usable records of the files, in order, with their tokens.

  Args:
    files: see `read.source_files`.
    data: format, max_length, max_prompt_length and truncate are read.
    rules: of the tokenizer.
    tally: what becomes of the rows is added to it.
    tell: is called with each row that is refused, and why.

  Raises UserError where the files hold images; rows that do so here and there
  are refused.
  """
  stream = records(files, data.format, tally, tell)
  batches = iter(lambda: list(itertools.islice(stream, _BATCH)), [])
  for record, outcome in text.tokenize_ahead(
    _checked(batches), rules, data, tally.counts
  ):
    if isinstance(outcome, text.Tokens):
      yield record, outcome
    elif outcome.refused:
      tally.refuse(record, outcome.kind, outcome.detail, tell)
    else:
      tally.dropped[outcome.kind] += 1


def _checked(batches: Iterator[list[Record]]) -> Iterator[list[Record]]:
  """Raises UserError where all records of the first batch hold images."""
  for number, batch in enumerate(batches):
    if number == 0 and all(map(_is_pictured, batch)):
      raise UserError(
        f"{batch[0].id} and what follows hold images, and a language model is "
        "trained on texts. Set config.data.path to data whose answers are "
        "texts; images are for diffusion models."
      )
    yield batch


def records(
  files: Sequence[read.Source],
  name: str,
  tally: "Tally",
  tell: Callable[[Refusal], None],
  *,
  prompts: bool = False,
) -> Iterator[Record]:
  """The records of the files, in order; rows that belong together are one.

  Args:
    files: see `read.source_files`.
    name: of their format, one of `formats.FORMATS`, or 'auto'.
    tally: what becomes of the rows is added to it.
    tell: is called with each row that is refused, and why.
    prompts: whether prompts will do, without answers.
  """

  def refuse(refusal: Refusal) -> None:
    tally.refused[refusal.kind] += 1
    tell(refusal)

  detect = functools.partial(formats.detect, prompts=prompts)
  find = detect if name == "auto" else lambda values: name
  return _joined(_records(files, find, tally, refuse))


def _records(
  files: Sequence[read.Source],
  find: Callable[[Mapping[str, Any]], str],
  tally: "Tally",
  refuse: Callable[[Refusal], None],
) -> Iterator[tuple[Record, bool]]:
  """The records of the rows, and whether rows after it may belong to it."""
  for row in read.read_rows(files):
    tally.rows += 1
    found = _parse(row, find, tally)
    if isinstance(found, Refusal):
      refuse(found)
    else:
      yield from found


def _joined(records: Iterator[tuple[Record, bool]]) -> Iterator[Record]:
  """Makes one of records that follow each other and share their prompt."""
  last, open_ = None, False
  for record, joins in records:
    if last and open_ and joins and record.prompt == last.prompt:
      responses = [*last.responses, *record.responses]
      last = dataclasses.replace(last, responses=responses)
      continue
    if last:
      yield last
    last, open_ = record, joins
  if last:
    yield last


def _parse(
  row: read.Row | Refusal,
  find: Callable[[Mapping[str, Any]], str],
  tally: "Tally",
) -> list[tuple[Record, bool]] | Refusal:
  if isinstance(row, Refusal):
    return row
  try:
    name = find(row.values)
    tally.formats[name] += 1
    joins = formats.FORMATS[name].joins
    return [(record, joins) for record in formats.to_records(row, name)]
  except formats.Refused as error:
    reason = f"sample {row.key}: {error}" if row.key else str(error)
    return Refusal(row.file, row.number, error.kind, reason)


def _is_pictured(record: Record) -> bool:
  contents = (each.content for each in record.responses)
  return any(isinstance(each, PICTURES) for each in contents)


def _place(record: Record) -> tuple[str, int]:
  file, _, row = record.id.rpartition(":")
  return file, int(row)


@dataclasses.dataclass
class Tally:
  """What became of the rows."""

  rows: int = 0
  formats: Counter[str] = dataclasses.field(default_factory=Counter)
  refused: Counter[str] = dataclasses.field(default_factory=Counter)
  dropped: Counter[str] = dataclasses.field(default_factory=Counter)
  counts: text.Counts = dataclasses.field(default_factory=text.Counts)

  def refuse(
    self,
    record: Record,
    kind: str,
    detail: str,
    tell: Callable[[Refusal], None],
  ) -> None:
    """Counts and tells a record that was read, but cannot be used."""
    self.refused[kind] += 1
    reason = ": ".join(filter(None, (kind, detail)))
    tell(Refusal(*_place(record), kind, reason))

  def stats(self) -> dict[str, Any]:
    return {
      "rows": self.rows,
      "read": self.rows - sum(self.refused.values()),
      "refused": dict(self.refused),
      "dropped": dict(self.dropped),
      **{name: self.counts.events[name] for name in text.EVENTS},
      "lengths": _quantiles(self.counts.lengths),
    }


def _label(response: Response) -> int:
  return -1 if response.label is None else int(response.label)


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
  at = {"min": 0.0, "median": 0.5, "p90": 0.9, "max": 1.0}
  values = np.quantile(lengths or [0], list(at.values()), method="nearest")
  return {name: int(v) for name, v in zip(at, values, strict=True)}


class Table:
  """Collects the arrays of a preparation, on disk."""

  def __init__(self, folder: pathlib.Path, files: Mapping[str, int]):
    self._files = files
    self._writer = ArrayWriter(folder / ARRAYS, "tokens")
    self._digest = hashlib.sha256()
    self._spool = functools.partial(Spool, folder)
    self._columns = {name: self._spool(np.int32) for name in _INT}
    self._columns |= {name: self._spool(np.float32) for name in _FLOAT}
    self._scores: dict[str, Spool] = {}  # by axis, NaN where not scored
    self._put(first_response=[0], first_comparison=[0])

  def append(self, record: Record, tokens: text.Tokens) -> None:
    for part in (tokens.prompt, *tokens.responses):
      self._digest.update(self._writer.append(part))
    file, row = _place(record)
    first, compared = len(self._columns["response_lengths"]), record.comparisons
    for name in dict.fromkeys(n for r in record.responses for n in r.scores):
      if name not in self._scores:
        self._scores[name] = self._spool(np.float32)
        self._scores[name].extend(itertools.repeat(math.nan, first))
    for name, scores in self._scores.items():
      scores.extend([r.scores.get(name, math.nan) for r in record.responses])
    self._put(
      file=[self._files[file]],
      row=[row],
      prompt_lengths=[len(tokens.prompt)],
      response_lengths=map(len, tokens.responses),
      label=map(_label, record.responses),
      first_response=[first + len(tokens.responses)],
      better=[first + each.better for each in compared],
      worse=[first + each.worse for each in compared],
      preference=[each.preference for each in compared],
      weight=[each.weight for each in compared],
    )
    self._put(first_comparison=[len(self._columns["better"])])

  @property
  def axes(self) -> list[str]:
    """What responses are scored by."""
    return list(self._scores)

  def close(self) -> tuple[str, dict[str, int]]:
    """Completes the file; returns the fingerprint and what it holds."""
    columns, totals = self._columns, dict[str, int]()
    for name in dict.fromkeys((*_HASHED, *columns)):
      values = columns[name].read()
      self._writer.add(name, values)
      totals[name] = int(values.sum(dtype=np.int64))
      if name in _HASHED:
        self._digest.update(values.tobytes())
    shape = len(self._scores), len(columns["response_lengths"])
    scores = np.array([x.read() for x in self._scores.values()], np.float32)
    self._digest.update(scores.tobytes())  # of no bytes, if none
    self._writer.add("scores", scores.reshape(shape))
    self._writer.close()
    self.abandon()
    prompts, responses = totals["prompt_lengths"], totals["response_lengths"]
    return self._digest.hexdigest(), {
      "examples": len(columns["prompt_lengths"]),
      "responses": len(columns["response_lengths"]),
      "comparisons": len(columns["better"]),
      "tokens": prompts + responses,
      "prompt_tokens": prompts,
      "response_tokens": responses,
    }

  def abandon(self) -> None:
    """Closes the files as they are."""
    self._writer.abandon()
    for spool in (*self._columns.values(), *self._scores.values()):
      spool.close()

  def _put(self, **values: Iterable[Any]) -> None:
    for name, each in values.items():
      self._columns[name].extend(each)


_INT = (
  "prompt_lengths", "response_lengths", "label", "first_response", "better",
  "worse", "first_comparison", "file", "row",
)  # fmt: skip
_FLOAT = ("preference", "weight")
_HASHED = ("prompt_lengths", "response_lengths", "first_response", "label")
