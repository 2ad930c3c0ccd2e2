"""The train state, and the only training `jax.jit`."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpref import sharding
from jaxpref.fit.objectives import Objective, Terms
from jaxpref.types import Params, Term


@functools.partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that training changes; it is what a checkpoint holds.

  A pytree: of arrays, and of their shapes or shardings.
  """

  step: Any  # int32, updates made so far; it is the data's state too
  params: Mapping[str, Params]  # by role
  opt_state: Any
  objective: Any  # what the objective keeps between steps
  key: Any  # uint32, the seed; draws fold the step into it


Step = Callable[[TrainState, Mapping[str, Params], Any], tuple[TrainState, Any]]
Evaluate = Callable[[TrainState, Mapping[str, Params], Any], Terms]


def init_state(
  params: Mapping[str, Params],
  tx: optax.GradientTransformation,
  seed: int,
  shardings: TrainState,
) -> TrainState:
  """The state before the first step; moments are made in their shards."""
  opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
  put = functools.partial(jax.device_put, device=shardings.step)
  return TrainState(
    step=put(jnp.zeros((), jnp.int32)),
    params=params,
    opt_state=opt_state,
    objective={},
    key=put(jax.random.key_data(jax.random.key(seed))),
  )


def state_shardings(
  mesh: jax.sharding.Mesh,
  tx: optax.GradientTransformation,
  shapes: Mapping[str, Params],
  param_shardings: Mapping[str, Any],
) -> TrainState:
  """Where each part of the state lies: moments beside their parameters."""
  everywhere = sharding.replicated(mesh)
  opt_state = optax.tree_utils.tree_map_params(
    tx,
    lambda _, where: where,
    jax.eval_shape(tx.init, shapes),
    param_shardings,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(
    step=everywhere,
    params=param_shardings,
    opt_state=opt_state,
    objective={},
    key=everywhere,
  )


def make_step(
  objective: Objective,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  shardings: TrainState,
) -> Step:
  """step(state, frozen, batch) -> (state, metrics).

  The leaves of `batch` stack micro-batches on their first axis. A term's
  gradient is the sum over micro-batches divided by the sum of its counts, so
  the number and the evenness of micro-batches do not matter. Metrics are
  Terms; `grad_norm`, before clipping, and `learning_rate` have count 1.
  """

  def step(
    state: TrainState, frozen: Mapping[str, Params], batch: Any
  ) -> tuple[TrainState, Terms]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    counts = _counts(objective, state, frozen, batch, key)

    def loss(params: Any, kept: Any, part: Any) -> tuple[jax.Array, Any]:
      terms, kept, metrics = objective(params, frozen, kept, part, key)
      shares = [term.total / counts[name] for name, term in terms.items()]
      return jnp.sum(jnp.stack(shares)), (kept, metrics)

    def accumulate(carry: Any, part: Any) -> tuple[Any, Terms]:
      grads, kept = carry
      new, (kept, metrics) = jax.grad(loss, has_aux=True)(
        state.params, kept, part
      )
      return (jax.tree.map(jnp.add, grads, new), kept), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (grads, kept), metrics = jax.lax.scan(
      accumulate, (zeros, state.objective), batch
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      objective=kept,
      key=state.key,
    )
    metrics = _sum_micro_batches(metrics)
    metrics["grad_norm"] = _one(optax.tree.norm(grads))
    metrics["learning_rate"] = _one(schedule(state.step))
    return new_state, metrics

  # Pinned output shardings: else the second step compiles again.
  everywhere = sharding.replicated(shardings.step.mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def make_evaluate(objective: Objective) -> Evaluate:
  """evaluate(state, frozen, batch) -> metrics, without gradients."""

  @jax.jit
  def evaluate(
    state: TrainState, frozen: Mapping[str, Params], batch: Any
  ) -> Terms:
    key = jax.random.wrap_key_data(state.key)
    metrics = jax.lax.map(
      lambda part: objective(state.params, frozen, state.objective, part, key)[
        2
      ],
      batch,
    )
    return _sum_micro_batches(metrics)

  return evaluate


def _counts(
  objective: Objective,
  state: TrainState,
  frozen: Mapping[str, Params],
  batch: Any,
  key: jax.Array,
) -> dict[str, jax.Array]:
  """Units of each term in the whole step.

  Counts depend on the data only, so the compiler drops the rest of the
  objective from this loop (a test looks at the compiled program).
  """

  def count(part: Any) -> dict[str, jax.Array]:
    terms = objective(state.params, frozen, state.objective, part, key)[0]
    return {name: term.count for name, term in terms.items()}

  totals = jax.tree.map(jnp.sum, jax.lax.map(count, batch))
  return {name: jnp.maximum(total, 1.0) for name, total in totals.items()}


def _one(value: Any) -> Term:
  return Term(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _sum_micro_batches(metrics: Terms) -> Terms:
  return jax.tree.map(lambda each: jnp.sum(each, axis=0), metrics)
