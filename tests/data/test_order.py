"""Which example comes when: the same on any number of workers and hosts."""

import hashlib
import random

import jax
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.data.joined import join
from jaxpref.data.mixture import make_order
from jaxpref.data.steps import Steps
from jaxpref.fit.put import put_batch

COUNT, BATCH, EPOCH = 22, 5, 5  # the last step of an epoch has 2 of 5 examples
STEPS = 2 * EPOCH
SIZES = {"large": 14, "small": 8}


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


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_workers(data, threads):
  steps = _steps(data, 1)
  loaded = steps.loader(range(STEPS), threads=threads)
  for step, batch in zip(range(STEPS), loaded, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, steps[step])
  assert loaded.waited > 0.0


@pytest.mark.parametrize("then", [1, 4])
@pytest.mark.parametrize("kind", ["one source", "mixture", "curriculum"])
def test_saved_by_two_hosts_and_resumed_by_others(data, mixed, kind, then):
  """Each example of both epochs once and only once, wherever it stopped."""
  stop = random.SystemRandom().randrange(1, STEPS)
  print(f"stopped after step {stop}")
  order = None
  if kind != "one source":
    criterion = "length" if kind == "curriculum" else ""
    data = mixed
    order = _mix(mixed, criterion=criterion, large=0, small=0)
  begun, resumed, whole = (
    _steps(data, hosts, order=order) for hosts in (2, then, 1)
  )
  seen = _seen(begun, begun.loader(range(stop)), 2)
  seen += _seen(resumed, resumed.loader(range(stop, STEPS)), then)
  assert seen == [sorted(whole.examples(step)) for step in range(STEPS)]
  for epoch in (seen[:EPOCH], seen[EPOCH:]):
    assert sorted(i for step in epoch for i in step) == list(range(COUNT))
