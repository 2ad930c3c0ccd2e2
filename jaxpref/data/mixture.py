"""Weighted mixtures: how many examples of each source an epoch and a step hold.

An epoch is the shortest that holds every example at the shares asked for: the
source that lasts longest is seen once in it, and the others again and again. A
step holds each source's share, as nearly as whole numbers can.
"""

from collections.abc import Mapping

import numpy as np

from jaxpref import config
from jaxpref.data.joined import Joined
from jaxpref.data.order import Order
from jaxpref.errors import UserError


def mix(data: config.Data, train: Joined) -> Order:
  """The order of an epoch of `data.sources`.

  Raises UserError for a source without examples, or with fewer than a step
  would take of it.
  """
  counts = np.bincount(train.source, minlength=len(train.parts))
  sizes = dict(zip(train.parts, counts.tolist(), strict=True))
  for name, size in sizes.items():
    if not size:
      raise UserError(
        f"config.data.sources.{name} has no example left to train on. Lower "
        "config.data.eval_holdout, or give it more data."
      )
  weights = {name: data.sources[name].weight for name in sizes}
  draws = draws_per_epoch(sizes, weights)
  seed = data.seed if data.shuffle else None
  order = Order(train.source, draws, seed=seed)
  _check_steps(order, data.batch_size)
  return order


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


def told(order: Order) -> str:
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
