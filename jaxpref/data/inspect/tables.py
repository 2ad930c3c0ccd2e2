"""The findings as tables of a few words each, for the screen and the page."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxpref.data import formats
from jaxpref.data.inspect.measure import Findings, disagreement, noise
from jaxpref.data.text import EVENTS

_LIMITS = (256, 512, 1024, 2048, 4096, 8192)


class Line(NamedTuple):
  name: str
  value: str
  help: str = ""


class Section(NamedTuple):
  title: str
  lines: list[Line]


def sections(found: Findings, max_length: int) -> list[Section]:
  """All that was found; `max_length` in tokens stands out among the limits."""
  parts = [
    Section("Rows", list(rows(found))),
    Section("Answers", list(_answers(found))),
    Section("Comparisons", list(_comparisons(found))),
    Section("Scores", list(scores(found))),
    Section("Annotators", list(_annotators(found))),
    Section("Tokens", list(_tokens(found))),
    Section("Longer than", list(_limits(found, max_length))),
  ]
  return [part for part in parts if part.lines]


def rows(found: Findings) -> Iterator[Line]:
  tally = found.tally
  refused = sum(tally.refused.values())
  yield Line("rows", f"{tally.rows:,}")
  yield Line(
    "read", f"{tally.rows - refused:,}", formats.explain(tally.formats)
  )
  yield Line("refused", share(refused, tally.rows))
  for kind, count in tally.refused.most_common():
    yield Line(f"  {kind}", f"{count:,}")
  for kind, count in tally.dropped.most_common():
    yield Line(kind, f"{count:,}", "left out, without being refused")


def _answers(found: Findings) -> Iterator[Line]:
  counts, records = found.counts, found.counts["records"]
  yield Line("examples", f"{records:,}", "one prompt with its answers")
  each = [f"{n:,} × {size}" for size, n in sorted(found.responses.items())]
  yield Line("answers to a prompt", ", ".join(each), "examples × answers")
  yield Line("different prompts", f"{counts['prompts']:,}")
  yield Line(
    "repeated examples",
    share(counts["repeated records"], records),
    "same prompt and answers as one before",
  )
  yield Line(
    "equal answers", share(counts["equal responses"], records), "in one example"
  )
  if labelled := counts["desirable"] + counts["undesirable"]:
    yield Line("labelled desirable", share(counts["desirable"], labelled))


def _comparisons(found: Findings) -> Iterator[Line]:
  counts, pairs = found.counts, found.pairs
  if not (counts["comparisons"] or pairs):
    return
  told = counts["comparisons"]
  yield Line("comparisons", f"{told:,}", "that the rows bring themselves")
  yield Line("ties", share(counts["ties"], told))
  yield Line("soft", share(counts["soft"], told), "annotators do not all agree")
  refused = found.tally.refused["chosen equals rejected"]
  yield Line("chosen = rejected", f"{refused:,}", "rows, refused above")
  alike = found.tally.dropped["responses of the same tokens"]
  yield Line("chosen = rejected in tokens", f"{alike:,}", "left out above")
  yield Line(
    "contradictions",
    f"{counts['contradictions']:,}",
    "the same two answers, compared the other way before",
  )
  yield Line(
    "longer answer wins",
    share(*length_bias(pairs)),
    "of pairs whose answers differ in tokens; without bias, about half",
  )
  better, worse = np.array(pairs or [(0, 0)]).T
  yield Line("better answer", _spread(better), "tokens")
  yield Line("worse answer", _spread(worse), "tokens")
  if counts["scored"]:
    yield Line("scored alike", share(counts["scored alike"], counts["scored"]))
    yield Line(
      "scored the other way",
      share(counts["scored the other way"], counts["scored"]),
      "the answer that is called better has the lower score",
    )


def length_bias(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
  """How many longer answers win, of how many pairs of unlike length."""
  unlike = [(better, worse) for better, worse in pairs if better != worse]
  return sum(better > worse for better, worse in unlike), len(unlike)


def scores(found: Findings) -> Iterator[Line]:
  for name, values in found.scores.items():
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    yield Line(
      name,
      f"{low:g} – {middle:g} – {high:g}",
      f"lowest, median, highest of {len(values):,}",
    )
  if rated := found.counts["rated"]:
    yield Line(
      "best is tied",
      share(found.counts["best is tied"], rated),
      "examples whose two best answers have the same first score",
    )


def _annotators(found: Findings) -> Iterator[Line]:
  if not found.votes:
    return
  differ = disagreement(found.votes)
  yield Line("judged by several", f"{len(found.votes):,}", "examples")
  yield Line(
    "two disagree", f"{differ:.1%}", "how often they name different sides"
  )
  yield Line(
    "label noise",
    f"{noise(differ):.1%}",
    "the chance that one judgement errs, if all err alike and apart",
  )


def _tokens(found: Findings) -> Iterator[Line]:
  yield Line("prompt", _spread(found.prompt_lengths), _SPREAD)
  yield Line("answer", _spread(found.response_lengths), _SPREAD)
  yield Line("prompt and longest answer", _spread(found.whole_lengths), _SPREAD)
  events = found.tally.counts.events
  for name, meaning in EVENTS.items():
    if name not in ("prompts_cut", "responses_cut"):  # nothing was cut here
      yield Line(name.replace("_", " "), f"{events[name]:,}", meaning)


def _limits(found: Findings, max_length: int) -> Iterator[Line]:
  lengths = np.array(found.whole_lengths)
  for limit in sorted({*_LIMITS, max_length}):
    over = int(np.count_nonzero(lengths > limit))
    mark = "data.max_length; " if limit == max_length else ""
    if over or mark:
      help = f"{mark}dropped, or cut by data.truncate"
      yield Line(f"{limit:,}", share(over, len(lengths)), help)


def share(count: int, total: int) -> str:
  """A count, and what part of all it is."""
  return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"


def _spread(values: Sequence[int] | np.ndarray) -> str:
  if not len(values):
    return "–"
  middle, high, most = np.quantile(values, [0.5, 0.9, 1.0], method="nearest")
  return f"{middle:,.0f}, {high:,.0f}, {most:,.0f}"


_SPREAD = "tokens: median, 90 % up to, most"
