"""A tiny Llama and made-up comparisons, trained for three steps in any way."""

from collections.abc import Callable
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.data.steps import Steps
from jaxpref.fit.cached_reference import CachedReference
from jaxpref.fit.loss import find_loss, needs_mismatched
from jaxpref.fit.objectives import text_objective
from jaxpref.fit.optimizer import make_optimizer, make_schedule
from jaxpref.fit.put import put_batch
from jaxpref.fit.step import init_state, make_step, state_shardings
from jaxpref.models.build import define, init_params
from jaxpref.models.llama.config import LlamaConfig

NUM_STEPS = 3
# Adam divides a gradient by its own size. Where that is next to nothing, its
# sign is rounding, and the usual 1e-8 makes a whole update of it: parameters
# then differ by up to 1e-3 after three steps, and losses by 6e-5. With this
# they differ by what the layout does to the sums: 3e-6 and 3e-7.
EPS = 1e-4
DPO = config.Loss(name="dpo", options={"beta": 0.5})


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
  """Reference log-probs of tests are not those of the user."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXPREF_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture(scope="session")
def definition():
  """Attention far from uniform: embeddings, too, are of order 1/sqrt(width)."""
  arch = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 32**-0.5,
  }
  return define(LlamaConfig.from_arch(arch), dtype="float32")


@pytest.fixture(scope="session")
def data(make_prepared):
  """Steps of one tall tree and four small ones; two are missing at the end.

  A tall tree has 4 responses and 6 comparisons, most of them soft, and fills
  a row of 64 tokens alone; a small one has a pair of up to 4 and 6 tokens.
  """
  rng = np.random.default_rng(0)
  take = lambda n: rng.integers(1, 64, size=n).tolist()
  tall = [(i, j, 1 - 0.1 * i) for i, j in itertools.combinations(range(4), 2)]
  examples = []
  for _ in range(NUM_STEPS):
    lengths = rng.permutation([9, 10, 12, 14])
    examples.append((take(12), [take(n) for n in lengths], tall))
    for _ in range(4):
      sizes = rng.integers(2, [5, 7])
      examples.append(
        (take(rng.integers(1, 5)), list(map(take, sizes)), [(1, 0)])
      )
  return make_prepared(examples[:-2])


@dataclasses.dataclass(frozen=True)
class Trained:
  """What three steps leave behind; `traces` counts objectives traced."""

  steps: Steps
  step: Any
  losses: list[float]
  metrics: list[dict[str, Any]]  # of each step, Terms of NumPy scalars
  params: Any
  state: Any
  frozen: Any
  batches: list[Any]  # on the devices
  consumed: list[Any]  # the states that the steps were given
  traces: int


@pytest.fixture(scope="session")
def train(definition, data) -> Callable[..., Trained]:
  """train(**what differs) -> Trained; the same is trained once."""
  return functools.cache(functools.partial(_train, definition, data))


def _train(
  definition,
  data,
  *,
  mesh=(1, 1, 1),
  rows=8,
  share_prompts=True,
  loss="dpo",
  reference="live",
  row_length=64,
  batch_size=5,
):
  options = {} if loss == "sft" else DPO.options
  settings = config.Loss(name=loss, options=options)
  if needs_mismatched(find_loss(settings)):
    data = data.with_mismatched(batch_size, row_length)
  mesh = sharding.make_mesh(*mesh)
  where = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  optimizer = config.Optimizer(
    learning_rate=1e-2, schedule="constant", eps=EPS, weight_decay=0.1
  )
  schedule = make_schedule(optimizer, NUM_STEPS)
  tx = make_optimizer(optimizer, schedule)
  shardings = state_shardings(
    mesh, tx, {"policy": definition.shapes}, {"policy": where}
  )
  steps = Steps(
    data,
    batch_size=batch_size,
    rows=rows,
    row_length=row_length,
    share_prompts=share_prompts,
    kept=data.imitated if loss == "sft" else None,
  )
  put = functools.partial(put_batch, mesh)
  load = lambda: init_params(definition, jax.random.key(0), where)
  objective = text_objective(definition, settings, head_block=16)
  traces = []

  def counted(*args):
    traces.append(args)
    return objective.forward(*args)

  counted_objective = dataclasses.replace(objective, forward=counted)

  with jax.set_mesh(mesh):
    if reference == "cached":
      # A store of its own: what rows of other shapes left differs by rounding.
      steps.ref_token_logp = CachedReference(
        steps, definition, load, weights=f"{dict(mesh.shape)} {steps.shape}",
        dtype="float32", head_block=16, put=put,
      ).fill()  # fmt: skip
    frozen = {"reference": load()} if reference == "live" else {}
    step = make_step(counted_objective, tx, schedule, shardings)
    state = init_state({"policy": load()}, tx, 0, shardings)
    batches, consumed, metrics = [], [], []
    for batch in steps.loader(range(NUM_STEPS)):
      batches.append(put(batch))
      consumed.append(state)
      state, terms = step(state, frozen, batches[-1])
      metrics.append(jax.device_get(terms))
  return Trained(
    steps=steps,
    step=step,
    losses=[float(m["loss"].total / m["loss"].count) for m in metrics],
    metrics=metrics,
    params=jax.device_get(state.params["policy"]),
    state=state,
    frozen=frozen,
    batches=batches,
    consumed=consumed,
    traces=len(traces),
  )
