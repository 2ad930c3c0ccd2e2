"""Counts of a data set, one record at a time."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import itertools
import math
from typing import Any

from jaxpref import config
from jaxpref.data import build, read, tokenizer
from jaxpref.data.containers import Refusal
from jaxpref.data.text import Tokens
from jaxpref.types import Record

_ENDLESS = 2**30  # tokens: nothing is cut or dropped for its length


def measure(
  path: str, rules: tokenizer.Rules, data: config.Data, examples: int = 3
) -> "Findings":
  """Reads all of `path`, and counts.

  Args:
    path: as config.data.path.
    rules: of the tokenizer.
    data: `format` is read; no limit is.
    examples: how many records are kept to be shown.

  Raises UserError for files that cannot be read.
  """
  found = Findings()
  whole = dataclasses.replace(data, max_length=_ENDLESS, max_prompt_length=0)
  files = read.source_files(path)
  for record, tokens in build.tokenized(
    files, whole, rules, found.tally, found.refusals.append
  ):
    found.add(record, tokens)
    if len(found.examples) < examples:
      found.examples.append((record, tokens))
  return found


@dataclasses.dataclass
class Findings:
  """What a data set holds; lengths are in tokens, BOS and EOS included."""

  tally: build.Tally = dataclasses.field(default_factory=build.Tally)
  refusals: list[Refusal] = dataclasses.field(default_factory=list)
  examples: list[tuple[Record, Tokens]] = dataclasses.field(
    default_factory=list
  )
  counts: Counter[str] = dataclasses.field(default_factory=Counter)
  responses: Counter[int] = dataclasses.field(default_factory=Counter)
  prompt_lengths: list[int] = dataclasses.field(default_factory=list)
  response_lengths: list[int] = dataclasses.field(default_factory=list)
  # Of each comparison that is no tie: (better, worse) responses' lengths.
  pairs: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  scores: dict[str, list[float]] = dataclasses.field(
    default_factory=lambda: defaultdict(list)
  )
  votes: list[list[float]] = dataclasses.field(default_factory=list)
  _records: set[bytes] = dataclasses.field(default_factory=set)
  _prompts: set[bytes] = dataclasses.field(default_factory=set)
  _directed: set[bytes] = dataclasses.field(default_factory=set)

  @property
  def whole_lengths(self) -> Sequence[int]:
    """Of each prompt with its longest response."""
    return self.tally.counts.lengths

  def add(self, record: Record, tokens: Tokens) -> None:
    lengths = [len(each) for each in tokens.responses]
    self.prompt_lengths.append(len(tokens.prompt))
    self.response_lengths += lengths
    self.add_record(
      record, lengths, [_digest(each.content) for each in record.responses]
    )

  def add_record(
    self, record: Record, lengths: list[int], contents: Sequence[bytes]
  ) -> None:
    """Counts what does not ask what a response is.

    Args:
      record: with its comparisons, scores and labels.
      lengths: of each response, in whatever it is measured.
      contents: what tells its responses apart.
    """
    self.counts["records"] += 1
    self.responses[len(lengths)] += 1
    for response in record.responses:
      self.counts["desirable"] += response.label is True
      self.counts["undesirable"] += response.label is False
      for name, score in response.scores.items():
        self.scores[name].append(score)
    self._add_comparisons(record, lengths)
    self._add_duplicates(record, contents)
    votes = record.meta.get("votes")
    if votes and len(votes) > 1:
      self.votes.append(list(votes))

  def _add_comparisons(self, record: Record, lengths: list[int]) -> None:
    self.counts["comparisons"] += len(record.comparisons)
    for each in record.comparisons:
      self.counts["ties"] += each.preference == 0.5
      self.counts["soft"] += each.preference not in (0.0, 0.5, 1.0)
    for better, worse in _ordered(record):
      self.pairs.append((lengths[better], lengths[worse]))
      sides = record.responses[better], record.responses[worse]
      for name in list(sides[0].scores)[:1] if record.comparisons else ():
        if name in sides[1].scores:
          gap = sides[0].scores[name] - sides[1].scores[name]
          self.counts["scored"] += 1
          self.counts["scored alike"] += gap == 0
          self.counts["scored the other way"] += gap < 0
    if not record.comparisons:
      best = _best_first(record)
      self.counts["rated"] += len(best) > 1
      self.counts["best is tied"] += len(best) > 1 and best[0] == best[1]

  def _add_duplicates(self, record: Record, contents: Sequence[bytes]) -> None:
    prompt = _digest(record.prompt)
    whole = _digest((prompt, sorted(contents)))
    self.counts["repeated records"] += whole in self._records
    self.counts["equal responses"] += len(set(contents)) < len(contents)
    for better, worse in _ordered(record):
      one, other = (
        _digest((prompt, contents[a], contents[b]))
        for a, b in ((better, worse), (worse, better))
      )
      self.counts["contradictions"] += other in self._directed
      self._directed.add(one)
    self._records.add(whole)
    self._prompts.add(prompt)
    self.counts["prompts"] = len(self._prompts)


def _ordered(record: Record) -> Iterator[tuple[int, int]]:
  """(better, worse): the data's comparisons, else all that scores order."""
  for better, worse, preference, _ in record.comparisons:
    if preference != 0.5:
      yield (better, worse) if preference > 0.5 else (worse, better)
  if not record.comparisons:
    scores = _first_scores(record)
    for a, b in itertools.combinations(range(len(scores)), 2):
      if scores[a] != scores[b]:
        yield (a, b) if scores[a] > scores[b] else (b, a)


def _first_scores(record: Record) -> list[float]:
  """By the first axis that all have; empty where there is none."""
  names = [set(each.scores) for each in record.responses]
  shared = set.intersection(*names)
  for name in record.responses[0].scores:
    if name in shared:
      return [each.scores[name] for each in record.responses]
  return []


def _best_first(record: Record) -> list[float]:
  return sorted(_first_scores(record), reverse=True)


def _digest(value: Any) -> bytes:
  return hashlib.blake2b(repr(value).encode(), digest_size=12).digest()


def disagreement(votes: list[list[float]]) -> float:
  """How often two people who judged the same pair name different sides.

  Those who see a tie are left out; NaN where no two are left.
  """
  differ = total = 0
  for each in votes:
    first, second = sum(v < 0 for v in each), sum(v > 0 for v in each)
    differ += first * second
    total += math.comb(first + second, 2)
  return differ / total if total else math.nan


def noise(disagreement: float) -> float:
  """The chance e that one judgement errs, if all err alike and apart.

  Two of them then differ with 2 e (1 - e).
  """
  return (1.0 - math.sqrt(max(0.0, 1.0 - 2.0 * disagreement))) / 2.0
