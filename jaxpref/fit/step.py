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


def state_shapes(
  shapes: Mapping[str, Params],
  tx: optax.GradientTransformation,
  shardings: TrainState,
) -> TrainState:
  """The state before it is made: shapes, dtypes and where each part lies."""
  begin = functools.partial(init_state, tx=tx, seed=0, shardings=shardings)
  return sharding.placed(jax.eval_shape(begin, shapes), shardings)


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
  the number and the evenness of micro-batches do not matter; nor do they for
  an objective that is coupled over the batch, whose loss is taken over the
  values of all of them. Metrics are Terms: `loss`, the sum of all terms, those
  of the objective, and `grad_norm`, before clipping, and `learning_rate`, whose
  count is 1.
  """

  def step(
    state: TrainState, frozen: Mapping[str, Params], batch: Any
  ) -> tuple[TrainState, Terms]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    # One micro-batch is the whole batch: nothing to merge, no second pass.
    apart = objective.merge and jax.tree.leaves(batch)[0].shape[0] > 1
    gradient = _coupled_gradient if apart else _gradient
    grads, kept, terms, metrics = gradient(objective, state, frozen, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      objective=kept,
      key=state.key,
    )
    return new_state, {
      "loss": _whole_loss(terms),
      **metrics,
      "grad_norm": _one(optax.tree.norm(grads)),
      "learning_rate": _one(schedule(state.step)),
    }

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
    if objective.merge:
      values = _all_values(objective, state.params, frozen, batch, key)
      merged = objective.merge(batch, values)
      terms, _, metrics = objective.terms(state.objective, *merged)
    else:

      def one(part: Any) -> tuple[Terms, Terms]:
        terms, _, metrics = objective(
          state.params, frozen, state.objective, part, key
        )
        return terms, metrics

      terms, metrics = _sum_micro_batches(jax.lax.map(one, batch))
    return {"loss": _whole_loss(terms), **metrics}

  return evaluate


# grads, state of the objective, terms and metrics of a step
Gradient = tuple[Any, Any, Terms, Terms]


def _gradient(
  objective: Objective,
  state: TrainState,
  frozen: Mapping[str, Params],
  batch: Any,
  key: jax.Array,
) -> Gradient:
  """Forward and backward, micro-batch by micro-batch."""
  alone = jax.tree.leaves(batch)[0].shape[0] == 1
  # Of one alone its own counts are all: tracing it twice takes seconds.
  counts = None if alone else _counts(objective, state, frozen, batch, key)

  def loss(params: Any, kept: Any, part: Any) -> tuple[jax.Array, Any]:
    terms, kept, metrics = objective(params, frozen, kept, part, key)
    return _sum_shares(terms, counts), (kept, terms, metrics)

  def accumulate(carry: Any, part: Any) -> tuple[Any, tuple[Terms, Terms]]:
    grads, kept = carry
    new, (kept, *told) = jax.grad(loss, has_aux=True)(state.params, kept, part)
    return (jax.tree.map(jnp.add, grads, new), kept), tuple(told)

  if alone:  # no sums to begin at zero
    part = jax.tree.map(lambda each: each[0], batch)
    grads, (kept, *told) = jax.grad(loss, has_aux=True)(
      state.params, state.objective, part
    )
    return grads, kept, *told
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (grads, kept), told = jax.lax.scan(
    accumulate, (zeros, state.objective), batch
  )
  return grads, kept, *_sum_micro_batches(told)


def _coupled_gradient(
  objective: Objective,
  state: TrainState,
  frozen: Mapping[str, Params],
  batch: Any,
  key: jax.Array,
) -> Gradient:
  """The loss of all micro-batches at once, without the memory of all.

  A forward pass of each gives the values, the loss their gradient, and a
  second pass of each takes that back to the parameters.
  """
  assert objective.merge is not None
  merge = objective.merge
  values = _all_values(objective, state.params, frozen, batch, key)

  def loss(values: Any) -> tuple[jax.Array, Any]:
    terms, kept, metrics = objective.terms(
      state.objective, *merge(batch, values)
    )
    return _sum_shares(terms), (kept, terms, metrics)

  pulls, (kept, terms, metrics) = jax.grad(loss, has_aux=True)(values)

  def accumulate(grads: Any, part: Any) -> tuple[Any, None]:
    micro_batch, pull = part
    _, back = jax.vjp(
      lambda params: objective.forward(params, frozen, micro_batch, key),
      state.params,
    )
    return jax.tree.map(jnp.add, grads, back(pull)[0]), None

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  grads, _ = jax.lax.scan(accumulate, zeros, (batch, pulls))
  return grads, kept, terms, metrics


def _all_values(
  objective: Objective,
  params: Mapping[str, Params],
  frozen: Mapping[str, Params],
  batch: Any,
  key: jax.Array,
) -> Any:
  return jax.lax.map(
    lambda part: objective.forward(params, frozen, part, key), batch
  )


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

  return jax.tree.map(jnp.sum, jax.lax.map(count, batch))


def _whole_loss(terms: Terms) -> Term:
  """The sum of all terms, as an average over the units of the first."""
  count = terms["loss"].count
  if len(terms) == 1:
    return terms["loss"]
  return Term(count * _sum_shares(terms), count)


def _sum_shares(
  terms: Terms, counts: Mapping[str, jax.Array] | None = None
) -> jax.Array:
  """The sum of all terms, each divided by its count: its own, unless given."""
  if counts is None:
    counts = {name: term.count for name, term in terms.items()}
  shares = [
    term.total / jnp.maximum(counts[name], 1.0) for name, term in terms.items()
  ]
  return jnp.sum(jnp.stack(shares))


def _one(value: Any) -> Term:
  return Term(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _sum_micro_batches(terms: Any) -> Any:
  return jax.tree.map(lambda each: jnp.sum(each, axis=0), terms)
