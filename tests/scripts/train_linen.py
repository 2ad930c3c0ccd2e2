"""DPO of a tiny Linen policy: answers that count upwards are preferred.

python tests/scripts/train_linen.py
"""

import functools
import json

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxpref import losses

PAIRS, PROMPT, ANSWER, VOCAB = 64, 1, 4, 12
STEPS = 100


class Policy(nn.Module):
  """Tokens [batch, length] to logits of the one after each, by it alone."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(VOCAB, 32)(tokens)
    x = nn.gelu(nn.Dense(64)(x))
    return nn.Dense(VOCAB)(x)


@jax.jit
def make_pairs(key):
  """Chosen: the numbers after the prompt's. Rejected: any four numbers."""
  first, other = jax.random.split(key)
  prompt = jax.random.randint(first, (PAIRS, PROMPT), 0, VOCAB)
  chosen = (prompt + 1 + jnp.arange(ANSWER)[None]) % VOCAB
  rejected = jax.random.randint(other, (PAIRS, ANSWER), 0, VOCAB)
  whole = lambda answer: jnp.concatenate([prompt, answer], axis=1)
  return whole(chosen), whole(rejected)


def answer_logp(params, tokens):
  """Log-probability of each answer, summed over its tokens."""
  logp = jax.nn.log_softmax(Policy().apply(params, tokens[:, :-1]))
  logp = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=2)[..., 0]
  return jnp.sum(logp[:, PROMPT - 1 :], axis=1)


def objective(params, reference, pairs):
  chosen, rejected = (
    answer_logp(params, tokens) - answer_logp(reference, tokens)
    for tokens in pairs
  )
  loss = losses.dpo(chosen, rejected, beta=0.5)
  return jnp.mean(loss), jnp.mean(losses.reward_accuracy(chosen, rejected))


def main():
  pairs = make_pairs(jax.random.key(0))
  params = reference = jax.jit(Policy().init)(jax.random.key(1), pairs[0])
  optimizer = optax.adam(1e-2)
  state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnums=1)
  def step(params, state, reference):
    grad = jax.value_and_grad(objective, has_aux=True)
    (loss, accuracy), grads = grad(params, reference, pairs)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, (loss, accuracy)

  for number in range(STEPS):
    params, state, (loss, accuracy) = step(params, state, reference)
    if number in (0, STEPS - 1):
      line = {"loss": float(loss), "accuracy": float(accuracy)}
      print(json.dumps({"step": number, **line}))


if __name__ == "__main__":
  main()
