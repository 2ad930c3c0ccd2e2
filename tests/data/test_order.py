"""Which example comes when: the same on any number of workers and hosts."""

import hashlib
import random

import jax
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.data.joined import join
from jaxpref.data.mixture import make_order
from jaxpref.data.order import one_source
from jaxpref.data.steps import Steps
from jaxpref.fit.put import put_batch

COUNT, BATCH, EPOCH = 22, 5, 5  # the last step of an epoch has 2 of 5 examples
STEPS = 2 * EPOCH
SIZES = {"large": 14, "small": 8}
BUCKET = np.repeat([0, 1, 3], [12, 7, 3])[np.arange(COUNT) * 5 % COUNT]


@pytest.fixture(scope="module")
def make_part(make_prepared):
  """Pairs and triples of random lengths; up to 30 tokens a sequence."""
  rng = np.random.default_rng(0)
  take = lambda low, high: rng.integers(1, 99, rng.integers(low, high)).tolist()
  return lambda count: make_prepared(
    [
      (take(1, 10), [take(1, 20) for _ in range(n)], [(0, 1)])
      for n in rng.integers(2, 4, size=count)
    ]
  )


@pytest.fixture(scope="module")
def data(make_part):
  return make_part(COUNT)


@pytest.fixture(scope="module")
def mixed(make_part):
  return join({name: make_part(size) for name, size in SIZES.items()})


def _steps(data, hosts, **given):
  """Hosts of one device with two rows each."""
  settings = {"batch_size": BATCH, "row_length": 128, "shuffle": True}
  settings |= {"seed": 3, "num_steps": STEPS}
  return Steps(data, rows=2 * hosts, **{**settings, **given})


def _mix(data, *, criterion="", **weights):
  sources = {name: {"path": "x", "weight": w} for name, w in weights.items()}
  tree = {"sources": sources, "batch_size": BATCH, "seed": 3}
  tree["curriculum"] = {"criterion": criterion}
  return make_order(config.build({"data": tree}).data, data)[0]


def _seen(steps, batches, hosts):
  """The examples of each batch, as every host finds them on its devices."""
  mesh = sharding.make_mesh(1, hosts, 1, jax.devices()[:hosts])
  found = []
  for batch in batches:
    placed, parts = put_batch(mesh, batch), []
    for shard in placed.slot.addressable_shards:  # [micro, rows, responses]
      ids = []
      for micro, slots in enumerate(np.asarray(shard.data)):
        here = np.unique(slots[slots < batch.slots.valid.shape[-1]])
        ids += batch.slots.example_id[micro][here].tolist()
      parts.append(sorted(set(ids)))
    assert len(parts) == hosts
    found.append(sorted(i for part in parts for i in part))
  return found


def _digest(ids):
  return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def test_golden(data):
  """A new hash means that no run goes on where it was: say so in a release."""
  steps = _steps(data, 1)
  ids = [data.ids[i] for step in range(STEPS) for i in steps.examples(step)]
  assert _digest(ids) == "6fa343d4d90295a2"


def test_golden_of_a_mixture(mixed):
  order = _mix(mixed, large=1, small=3)
  ids = [mixed.ids[i] for epoch in range(2) for i in order(epoch)]
  assert _digest(ids) == "f84bba17899c8860"


def _in_buckets(**given):
  return one_source(COUNT, bucket=BUCKET, **{"seed": 3, **given})


def test_golden_of_buckets(data):
  """As of one: a new hash means that no run goes on."""
  steps = _steps(data, 1, order=_in_buckets())
  assert steps.steps_per_epoch == 3 + 2 + 1
  ids = [data.ids[i] for step in range(12) for i in steps.examples(step)]
  assert _digest(ids) == "73e927d7e28b95d8"


def test_batches_of_buckets():
  """Each of one bucket, the last one short, in an order that is drawn anew."""
  order = _in_buckets()
  kinds = []
  for epoch in range(200):
    batches = order.batches(epoch, BATCH)
    assert len(batches) == order.num_batches(BATCH) == 6
    assert sorted(np.concatenate(batches)) == list(range(COUNT))
    told = [(int(BUCKET[each[0]]), len(each)) for each in batches]
    assert all(len(set(BUCKET[each])) == 1 for each in batches)
    by_kind = {k: [n for kind, n in told if kind == k] for k, _ in told}
    assert {k: sorted(n) for k, n in by_kind.items()} == {
      0: [2, 5, 5], 1: [2, 5], 3: [3]
    }  # fmt: skip
    # Within a bucket, those that stand together come in the epoch's order.
    place = np.argsort(order(epoch))
    assert all((np.diff(place[each]) > 0).all() for each in batches)
    kinds.append([kind for kind, _ in told])
  assert len({*map(tuple, kinds)}) > 20
  first, last = (np.mean([kind[at] == 3 for kind in kinds]) for at in (0, -1))
  assert 0.08 < first < 0.25
  assert 0.08 < last < 0.25


def test_one_bucket_is_none():
  alike = one_source(COUNT, seed=3, bucket=np.full(COUNT, 2))
  for one, other in zip(
    one_source(COUNT, seed=3).batches(1, BATCH),
    alike.batches(1, BATCH),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rank", [None, -np.arange(COUNT)])
def test_what_has_an_order_keeps_it_in_buckets(rank):
  """Batches come as the first of each does: a curriculum stays one."""
  seed = None if rank is None else 3
  batches = _in_buckets(seed=seed, rank=rank).batches(0, BATCH)
  first = [each[0] for each in batches]
  assert first == sorted(first, reverse=rank is not None)
  assert sorted(np.concatenate(batches)) == list(range(COUNT))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_workers(data, threads):
  steps = _steps(data, 1)
  loaded = steps.loader(range(STEPS), threads=threads)
  for step, batch in zip(range(STEPS), loaded, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, steps[step])
  assert loaded.waited > 0.0


@pytest.mark.parametrize("then", [1, 4])
@pytest.mark.parametrize(
  "kind", ["one source", "mixture", "curriculum", "buckets"]
)
def test_saved_by_two_hosts_and_resumed_by_others(data, mixed, kind, then):
  """Each example of both epochs once and only once, wherever it stopped."""
  order = _in_buckets() if kind == "buckets" else None
  epoch = 6 if kind == "buckets" else EPOCH
  stop = random.SystemRandom().randrange(1, 2 * epoch)
  print(f"stopped after step {stop}")
  if kind in ("mixture", "curriculum"):
    criterion = "length" if kind == "curriculum" else ""
    data = mixed
    order = _mix(mixed, criterion=criterion, large=0, small=0)
  begun, resumed, whole = (
    _steps(data, hosts, order=order, num_steps=2 * epoch)
    for hosts in (2, then, 1)
  )
  seen = _seen(begun, begun.loader(range(stop)), 2)
  seen += _seen(resumed, resumed.loader(range(stop, 2 * epoch)), then)
  assert seen == [sorted(whole.examples(step)) for step in range(2 * epoch)]
  for part in (seen[:epoch], seen[epoch:]):
    assert sorted(i for step in part for i in step) == list(range(COUNT))
