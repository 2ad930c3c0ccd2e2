"""A tiny Equinox reward model of answers that a hidden direction ranks.

python tests/scripts/train_equinox.py
"""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxpref import losses

PAIRS, WIDTH = 64, 8
STEPS = 100


@eqx.filter_jit
def make_model(key):
  """Its last layer begins at zero: every answer has the same reward."""
  model = eqx.nn.MLP(WIDTH, "scalar", width_size=32, depth=2, key=key)
  last = lambda model: (model.layers[-1].weight, model.layers[-1].bias)
  return eqx.tree_at(last, model, replace_fn=jnp.zeros_like)


@jax.jit
def make_pairs(key):
  """Two answers each, as features, the better one first."""
  features, direction = jax.random.split(key)
  answers = jax.random.normal(features, (PAIRS, 2, WIDTH))
  quality = answers @ jax.random.normal(direction, (WIDTH,))
  first = (quality[:, 0] > quality[:, 1])[:, None]
  chosen = jnp.where(first, answers[:, 0], answers[:, 1])
  rejected = jnp.where(first, answers[:, 1], answers[:, 0])
  return chosen, rejected


def objective(model, pairs):
  chosen, rejected = (jax.vmap(model)(answers) for answers in pairs)
  loss = losses.bradley_terry(chosen, rejected, center=0.01)
  return jnp.mean(loss), jnp.mean(losses.reward_accuracy(chosen, rejected))


def main():
  pairs = make_pairs(jax.random.key(0))
  model = make_model(jax.random.key(1))
  optimizer = optax.adam(1e-2)
  state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

  @eqx.filter_jit
  def step(model, state):
    grad = eqx.filter_value_and_grad(objective, has_aux=True)
    (loss, accuracy), grads = grad(model, pairs)
    updates, state = optimizer.update(grads, state)
    return eqx.apply_updates(model, updates), state, (loss, accuracy)

  for number in range(STEPS):
    model, state, (loss, accuracy) = step(model, state)
    if number in (0, STEPS - 1):
      line = {"loss": float(loss), "accuracy": float(accuracy)}
      print(json.dumps({"step": number, **line}))


if __name__ == "__main__":
  main()
