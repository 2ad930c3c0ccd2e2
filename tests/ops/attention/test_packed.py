"""Trees whose prompts stand once, against every sequence by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref.data.batch import places
from jaxpref.data.steps import Steps
from jaxpref.ops.attention import (
  Kind,
  causal_attention,
  cudnn_attention,
  packed_attention,
  splash_attention,
)
from jaxpref.ops.rope import Rope, angles, rotate

WIDTH, HEADS, KV_HEADS, HEAD_DIM = 16, 4, 2, 8
ROW_LENGTH = 40
# (prompt, responses) of trees with 1, 2, 7 and 2 responses.
TREES = [(5, [7]), (8, [4, 9]), (9, [3, 6, 2, 9, 5, 4, 8]), (6, [2, 3])]

PLAIN = Kind(scale=HEAD_DIM**-0.5)
WINDOW = PLAIN._replace(window=5)
BOTH = WINDOW._replace(softcap=1.0)
BACKENDS = {
  "xla": causal_attention,
  "splash": functools.partial(splash_attention, interpret=True),
  # The arguments that cuDNN gets, on a form that runs anywhere.
  "cudnn": functools.partial(cudnn_attention, implementation="xla"),
}


@pytest.fixture(scope="module")
def steps(make_prepared):
  rng = np.random.default_rng(0)
  take = lambda length: rng.integers(1, 32, size=length).tolist()
  examples = [
    (take(prompt), list(map(take, responses)), [(0, 1)] * (len(responses) > 1))
    for prompt, responses in TREES
  ]
  data = make_prepared(examples)
  return Steps(data, batch_size=len(TREES), rows=3, row_length=ROW_LENGTH)


def test_the_batch_has_what_is_tested(steps):
  """Several trees in a row, and the tall one in several rows."""
  rows = [row for micro in steps.packing(0)[0] for row in micro]
  trees = [[piece.example for piece in row] for row in rows]
  assert max(len(set(row)) for row in trees) > 1
  assert sum(2 in row for row in trees) > 1


@pytest.mark.parametrize("kind", [PLAIN, BOTH], ids=["plain", "special"])
@pytest.mark.parametrize("backend", [*BACKENDS, "tree mask"])
def test_packed_trees_are_their_sequences(steps, backend, kind):
  """Two layers of it: states that predict a response's tokens, gradients."""
  if backend == "cudnn":  # it has no soft-cap
    kind = kind._replace(softcap=0.0)
  states, grads = _packed(steps, backend, kind)
  expected, expected_grads = _separate(steps, kind)
  assert np.ptp(expected) > 3
  # Measured: 4e-6 of up to 12, and 7e-6 of gradients of up to 9.
  np.testing.assert_allclose(states, expected, atol=1e-5)
  for path, grad in expected_grads.items():
    assert np.abs(grad).max() > 1
    np.testing.assert_allclose(grads[path], grad, atol=1e-4)
  other = BOTH if kind == PLAIN else kind._replace(window=4)
  assert np.abs(states - _separate(steps, other)[0]).max() > 0.1
  if kind == BOTH:
    assert np.abs(states - _separate(steps, WINDOW)[0]).max() > 0.1


def _packed(steps, backend, kind):
  """Of the rows of a step, by one back end or under a dense mask."""
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), steps[0])
  if backend == "tree mask":
    attend = _dense(_tree_mask(batch.expand, batch.tokens.shape, kind.window))
  else:
    attend = packed_attention(batch.expand, batch.collapse, BACKENDS[backend])
  found = sorted(
    places(steps.data, steps.packing(0)[0]), key=lambda p: p.response
  )
  rows = np.concatenate([np.full(p.length, p.row) for p in found])
  scored = np.concatenate([np.arange(p.length) + p.start for p in found])
  at = rows, np.asarray(batch.source)[rows, scored]
  return _run(batch.tokens, batch.position, attend, kind, at)


@functools.cache
def _separate(steps, kind):
  """Of each prompt with each response, in a row of its own."""
  data = steps.data
  tokens, rows, columns = [], [], []
  for example in range(len(data)):
    prompt = data.prompt(example)
    for number in range(*data.first_response[example : example + 2]):
      response = data.response(number)
      rows += [len(tokens)] * len(response)
      columns += range(len(prompt) - 1, len(prompt) + len(response) - 1)
      tokens.append([*prompt, *response])
  longest = max(map(len, tokens))
  tokens = np.array([t + [0] * (longest - len(t)) for t in tokens], np.int32)
  position = np.arange(longest, dtype=np.int32)[None].repeat(len(tokens), 0)
  i, j = np.indices((longest, longest))
  seen = (j <= i) & (i - j < (kind.window or longest))
  attend = _dense(seen[None].repeat(len(tokens), 0))
  at = np.array(rows), np.array(columns)
  return _run(jnp.asarray(tokens), jnp.asarray(position), attend, kind, at)


def _run(tokens, position, attend, kind, at):
  """The states at (rows, tokens), and the gradients of a sum of them."""
  probe = 0.1 * jax.random.normal(jax.random.key(1), (len(at[0]), WIDTH))

  def total(params):
    angle = angles(position, Rope(), head_dim=HEAD_DIM, max_position=64)
    turn = lambda x: rotate(x, jnp.cos(angle), jnp.sin(angle))

    def layer(x, w):
      q, k, v = (jnp.einsum("rtd,dhc->rthc", x, w[name]) for name in "qkv")
      out, _ = attend(turn(q), turn(k), v, None, kind)
      return x + jnp.einsum("rthc,hcd->rtd", out, w["o"]), None

    x, _ = jax.lax.scan(layer, params["embed"][tokens], params["layers"])
    states = x[at]
    return jnp.sum(probe * states), states

  grads, states = jax.jit(jax.grad(total, has_aux=True))(_params())
  leaves = {"embed": grads["embed"], **grads["layers"]}
  return np.asarray(states), jax.tree.map(np.asarray, leaves)


def _params():
  sizes = {
    "q": (WIDTH, HEADS, HEAD_DIM),
    "k": (WIDTH, KV_HEADS, HEAD_DIM),
    "v": (WIDTH, KV_HEADS, HEAD_DIM),
    "o": (HEADS, HEAD_DIM, WIDTH),
  }
  keys = iter(jax.random.split(jax.random.key(0), 5))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  layers = {name: 0.3 * draw(2, *size) for name, size in sizes.items()}
  return {"embed": draw(32, WIDTH), "layers": layers}


def _dense(seen):
  """An `attend` that keeps all scores, under a mask [rows, queries, keys]."""

  def attend(q, k, v, item, kind):
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = kind.scale * jnp.einsum("rqhc,rkhc->rhqk", q, k)
    if kind.softcap:
      scores = kind.softcap * jnp.tanh(scores / kind.softcap)
    scores = jnp.where(jnp.asarray(seen)[:, None], scores, -1e30)
    probs = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("rhqk,rkhc->rqhc", probs, v), item

  return attend


def _tree_mask(expand, shape, window):
  """What each token of a row sees of the row."""
  seen = np.zeros((*shape, shape[1]), bool)
  for sequences in map(np.asarray, expand):
    for row, number in np.ndindex(sequences.shape[:2]):
      places = sequences[row, number]
      for i in range(np.argmax(places) + 1):  # padding repeats token 0
        start = max(0, i + 1 - window) if window else 0
        seen[row, places[i], places[start : i + 1]] = True
  return seen | np.eye(shape[1], dtype=bool)
