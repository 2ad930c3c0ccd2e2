"""Which example comes when: a function of the seed and the epoch alone."""

from collections.abc import Mapping

from jaxtyping import Int
import numpy as np


class Order:
  """The examples of each epoch, of one source or of several.

  A source is gone through without replacement: none of its examples comes
  again before all have come. Where it comes again within an epoch, it is in the
  same order; so a step has no example twice, unless it takes more of a source
  than there are.

  Steps take them as they come; or, where they are told apart by buckets, steps
  of one bucket each, the last one of each bucket with what is left of it.
  """

  def __init__(
    self,
    source: np.ndarray,
    draws: Mapping[str, int],
    *,
    seed: int | None,
    rank: np.ndarray | None = None,
    bucket: Int[np.ndarray, " n"] | None = None,
  ):
    """
    Args:
      source: of each example, from 0.
      draws: examples of each source, by its name, in an epoch.
      seed: of the order within a source; None = as the examples stand.
      rank: of each example; lower comes first, whatever the seed.
      bucket: of each example, where there is one source; None = all alike.
    """
    assert bucket is None or len(draws) == 1  # else epochs differ in length
    self.draws = draws
    self._members = [np.flatnonzero(source == k) for k in range(len(draws))]
    self._turns = turns(list(draws.values()))
    self._seed, self._rank, self._bucket = seed, rank, bucket

  def __len__(self) -> int:
    """Examples of an epoch."""
    return len(self._turns)

  def __call__(self, epoch: int) -> np.ndarray:
    """The numbers of an epoch's examples, as they come."""
    found = np.empty(len(self), np.int64)
    for k, count in enumerate(self.draws.values()):
      members = self._members[k]
      if self._seed is not None:
        rng = np.random.default_rng([self._seed, epoch, *([k] if k else [])])
        members = members[rng.permutation(len(members))]
      if self._rank is not None:
        members = members[np.argsort(self._rank[members], kind="stable")]
      # Where an epoch takes more of it than there are, again from its start.
      found[self._turns == k] = np.resize(members, count)
    return found

  def num_batches(self, size: int) -> int:
    """Batches of an epoch."""
    counts = [len(self)]
    if self._bucket is not None:
      counts = np.bincount(self._bucket).tolist()
    return sum(-(-int(count) // size) for count in counts)

  def batches(self, epoch: int, size: int) -> list[np.ndarray]:
    """An epoch's examples by batch, `size` of one bucket each, or what is left.

    Batches of several buckets come in an order of their own, random where that
    of the examples is; else as the first example of each comes.
    """
    found = self(epoch)
    bucket = np.zeros(len(found), int)
    if self._bucket is not None:
      bucket = self._bucket[found]
    alike = [np.flatnonzero(bucket == k) for k in np.unique(bucket)]
    places = [
      each[start : start + size]
      for each in alike
      for start in range(0, len(each), size)
    ]
    places.sort(key=lambda place: place[0])
    if len(alike) > 1 and self._seed is not None and self._rank is None:
      # No other draw has a key of so many numbers.
      rng = np.random.default_rng([self._seed, epoch, 0, 0, 1])
      places = [places[k] for k in rng.permutation(len(places))]
    return [found[place] for place in places]

  def counts(self, start: int, stop: int) -> dict[str, int]:
    """How many of an epoch's examples start ... stop - 1 each source gives."""
    found = np.bincount(self._turns[start:stop], minlength=len(self.draws))
    return dict(zip(self.draws, found.tolist(), strict=True))

  @property
  def sizes(self) -> list[int]:
    """Examples that each source has."""
    return [len(members) for members in self._members]


def one_source(
  count: int,
  *,
  seed: int | None,
  rank: np.ndarray | None = None,
  bucket: Int[np.ndarray, " n"] | None = None,
) -> Order:
  """Each of `count` examples once an epoch."""
  source, draws = np.zeros(count, int), {"": count}
  return Order(source, draws, seed=seed, rank=rank, bucket=bucket)


def turns(draws: list[int]) -> np.ndarray:
  """The source of each example of an epoch, each source spread evenly.

  >>> turns([4, 2]).tolist()
  [0, 1, 0, 0, 1, 0]
  """
  when = [(np.arange(count) + 0.5) / count for count in draws]
  order = np.argsort(np.concatenate(when), kind="stable")
  return np.repeat(np.arange(len(draws)), draws)[order]
