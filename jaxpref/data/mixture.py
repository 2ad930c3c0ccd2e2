"""Weighted mixtures: how many examples of each source an epoch and a step hold.

An epoch is the shortest that holds every example at the shares asked for: the
source that lasts longest is seen once in it, and the others again and again. A
step holds each source's share, as nearly as whole numbers can.
"""

from collections.abc import Mapping

import numpy as np

from jaxpref import config
from jaxpref.data.cache import Prepared
from jaxpref.data.curriculum import LogProbs, difficulty
from jaxpref.data.joined import Joined
from jaxpref.data.order import Order, one_source
from jaxpref.errors import UserError


def make_order(
  data: config.Data, train: Prepared, log_probs: LogProbs | None = None
) -> tuple[Order, str]:
  """The order of the examples, and what an epoch has of each source.

  Args:
    data: sources, curriculum, batch_size, shuffle and seed are read.
    train: the examples, of one source or of several.
    log_probs: see `difficulty`.

  Raises UserError for a source without examples, or with fewer than a step
  would take of it.
  """
  seed = data.seed if data.shuffle else None
  criterion = data.curriculum.criterion
  sorts = criterion and data.curriculum.stages == 1
  rank = difficulty(train, criterion, log_probs) if sorts else None
  if not isinstance(train, Joined):
    bucket = train.bucket
    return one_source(len(train), seed=seed, rank=rank, bucket=bucket), ""
  order = Order(train.source, _draws(data, train), seed=seed, rank=rank)
  _check_steps(order, data.batch_size)
  return order, _told(order)


def draws_per_epoch(
  sizes: Mapping[str, int], weights: Mapping[str, float]
) -> dict[str, int]:
  """How many examples of each source an epoch holds.

  Args:
    sizes: examples of each source.
    weights: their shares, up to a common factor; all 0 = as their sizes, so
      that each example comes once.

  >>> draws_per_epoch({"hh": 100, "own": 10}, {"hh": 3, "own": 1})
  {'hh': 100, 'own': 33}
  """
  if not any(weights.values()):
    return dict(sizes)
  epoch = max(size / weights[name] for name, size in sizes.items())
  return {
    name: max(size, round(epoch * weights[name]))
    for name, size in sizes.items()
  }


def _draws(data: config.Data, train: Joined) -> dict[str, int]:
  counts = np.bincount(train.source, minlength=len(train.parts))
  sizes = dict(zip(train.parts, counts.tolist(), strict=True))
  for name, size in sizes.items():
    if not size:
      raise UserError(
        f"config.data.sources.{name} has no example left to train on. Lower "
        "config.data.eval_holdout, or give it more data."
      )
  return draws_per_epoch(sizes, {k: data.sources[k].weight for k in sizes})


def _told(order: Order) -> str:
  """What an epoch has of each source, a line each."""
  return "\n".join(
    f"{name}: an epoch has {count:,} of its {size:,} examples "
    f"({count / size:.3g} times each), {count / len(order):.1%} of all."
    for (name, count), size in zip(
      order.draws.items(), order.sizes, strict=True
    )
  )


def _check_steps(order: Order, batch_size: int) -> None:
  """Raises UserError where a step would hold an example twice."""
  most = dict.fromkeys(order.draws, 0)
  for start in range(0, len(order), batch_size):
    for name, count in order.counts(start, start + batch_size).items():
      most[name] = max(most[name], count)
  for (name, count), size in zip(most.items(), order.sizes, strict=True):
    if count > size:
      raise UserError(
        f"config.data.sources.{name} has {size} examples to train on, and its "
        f"weight puts {count} into a step of {batch_size}: some would be there "
        "twice. Lower its weight or config.data.batch_size, or give it more "
        "data."
      )
