"""Text generation with a key-value cache.

Prompts of like length are padded on the left to one bucket, so that all rows
write the same place of the cache and few programs are compiled. One jitted
call reads the prompts and decodes until every row has ended.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key
import numpy as np

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models.build import Definition
from jaxpref.ops.attention import Attend, Kind, masked_attention, sees
from jaxpref.types import Params, Scalar

_SMALLEST_BUCKET = 16


def generate(
  definition: Definition,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  eos_ids: Sequence[int] = (),
  seed: int = 0,
  batch_size: int = 32,
) -> list[list[int]]:
  """Continues each prompt.

  Args:
    definition: the model.
    params: its parameters, sharded (then under `jax.set_mesh`) or not.
    prompts: token ids, at least one each (the BOS, to start from nothing).
    max_new_tokens: most tokens a prompt is continued by.
    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: only the k likeliest tokens are drawn; 0 = all.
    top_p: only the likeliest tokens that together reach this probability
      (after temperature and top_k) are drawn; 1 = all.
    eos_ids: a row ends after any of these.
    seed: a token's randomness is keyed by (seed, number of the prompt, number
      of the token), so that its batch does not change a sample.
    batch_size: most rows decoded at once.

  Returns: for each prompt the new ids, with the EOS where one was reached.
  """
  _check(definition, prompts, max_new_tokens, temperature, top_k, top_p)
  # Places for virtual tokens; the model does not look at what stands there.
  prompts = [[0] * definition.prompt.length + [*each] for each in prompts]
  static = _Static(
    definition.graphdef,
    max_new_tokens,
    greedy=temperature == 0,
    top_k=min(top_k, definition.config.vocab_size),
    use_top_p=top_p < 1,
  )
  results: list[list[int]] = [[] for _ in prompts]
  with jax.transfer_guard("allow"):  # whatever the caller's loop forbids
    given = _Given(
      jnp.asarray(eos_ids, jnp.int32),
      jnp.int32(seed),
      jnp.float32(temperature),
      jnp.float32(top_p),
    )
    for length, numbers in _batches(prompts, batch_size):
      tokens, padding = _pad_left([prompts[n] for n in numbers], length)
      rows = np.asarray(numbers, np.int32)
      decoded = _decode(static, params, tokens, padding, rows, given)
      out, count = (np.asarray(x) for x in decoded)
      for row, number in enumerate(numbers):
        results[number] = out[row, : count[row]].tolist()
  return results


def sample_token(
  logits: Float32[Array, "rows vocab"],
  keys: Key[Array, " rows"],
  *,
  temperature: Scalar,
  top_k: int = 0,
  top_p: Scalar | None = None,
) -> Int32[Array, " rows"]:
  """Draws a token a row, each by its own key.

  Args:
    logits: unnormalised log-probabilities.
    keys: one a row.
    temperature: above 0.
    top_k: 0 = all tokens; tokens that tie with the k-th stay.
    top_p: None = all tokens; the likeliest one always stays.
  """
  logits = logits / temperature
  if top_k:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  if top_p is not None:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # The first is always among the kept, since nothing stands before it.
    least = jnp.where(before < jnp.maximum(top_p, 1e-9), ordered, jnp.inf)
    least = jnp.min(least, axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class _Static(NamedTuple):
  """What a program is compiled for."""

  graphdef: Any
  max_new_tokens: int
  greedy: bool
  top_k: int
  use_top_p: bool


class _Given(NamedTuple):
  """Arguments of the program that are the same for all rows."""

  eos_ids: Int32[Array, " eos"]
  seed: Int32[Array, ""]
  temperature: Float32[Array, ""]
  top_p: Float32[Array, ""]


@functools.partial(jax.jit, static_argnums=0)
def _decode(
  static: _Static,
  params: Params,
  tokens: Int32[Array, "rows length"],
  padding: Int32[Array, " rows"],
  numbers: Int32[Array, " rows"],
  given: _Given,
) -> tuple[Int32[Array, "rows new"], Int32[Array, " rows"]]:
  """The new ids of each row, and how many of them count."""
  model = nnx.merge(static.graphdef, params)
  config, kernel = model.config, model.head_kernel()
  rows, length = tokens.shape
  new = static.max_new_tokens
  heads = (config.num_key_value_heads, config.head_dim)
  empty = jnp.zeros(
    (config.num_hidden_layers, rows, length + new, *heads), model.dtype
  )
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  row_keys = fold(jax.random.key(given.seed), numbers)

  def pick(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    logits = model.cap(logits)
    if static.greedy:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return sample_token(
      logits,
      jax.vmap(jax.random.fold_in, (0, None))(row_keys, step),
      temperature=given.temperature,
      top_k=static.top_k,
      top_p=given.top_p if static.use_top_p else None,
    )

  def read(
    tokens: jax.Array, start: jax.Array | int, cache: Any
  ) -> tuple[jax.Array, Any]:
    place = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    position = jnp.maximum(place - padding[:, None], 0)
    attend = _cached_attention(start, padding)
    hidden, cache = model(tokens, position, attend, cache)
    return hidden[:, -1], cache

  def unfinished(state: Any) -> jax.Array:
    step, _, ended, *_ = state
    return (step < new) & ~jnp.all(ended)

  def step_once(state: Any) -> Any:
    step, token, ended, count, out, cache = state
    out = jax.lax.dynamic_update_slice(out, token[:, None], (0, step))
    count = count + ~ended
    ended = ended | jnp.isin(token, given.eos_ids)
    hidden, cache = read(token[:, None], length + step, cache)
    return step + 1, pick(hidden, step + 1), ended, count, out, cache

  hidden, cache = read(tokens, 0, (empty, empty))
  count = jnp.zeros(rows, jnp.int32)
  out = jnp.zeros((rows, new), jnp.int32)
  state = (jnp.int32(0), pick(hidden, 0), count > 0, count, out, cache)
  _, _, _, count, out, _ = jax.lax.while_loop(unfinished, step_once, state)
  # On every device, so that each process can read all of it.
  out = sharding.constrain(out, (None, None))
  return out, sharding.constrain(count, (None,))


def _cached_attention(
  start: Int32[Array, ""] | int, padding: Int32[Array, " rows"]
) -> Attend:
  """An `attend` that writes keys and values to a cache from `start` on.

  Its item is a pair of [rows, places, kv_heads, head_dim], in which the first
  `padding` places of each row are empty.
  """

  def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, item: Any, kind: Kind
  ) -> tuple[jax.Array, Any]:
    keys, values = (
      jax.lax.dynamic_update_slice(cache, added, (0, start, 0, 0))
      for cache, added in zip(item, (k, v), strict=True)
    )
    place = jnp.arange(keys.shape[1])[None, None, :]
    asking = start + jnp.arange(q.shape[1])[None, :, None]
    seen = sees(asking, place, kind.window)
    seen = seen & (place >= padding[:, None, None])
    # An empty place sees itself alone, so that nothing becomes NaN.
    seen = seen | (place == asking)
    return masked_attention(q, keys, values, seen, kind), (keys, values)

  return attend


def _batches(
  prompts: Sequence[Sequence[int]], batch_size: int
) -> list[tuple[int, list[int]]]:
  """(length, prompt numbers): powers of two, and as many rows."""
  buckets: dict[int, list[int]] = {}
  for number, prompt in enumerate(prompts):
    length = max(_SMALLEST_BUCKET, _power_of_two(len(prompt)))
    buckets.setdefault(length, []).append(number)
  batches = []
  shards = sharding.shards("batch")
  for length, numbers in sorted(buckets.items()):
    for start in range(0, len(numbers), batch_size):
      chosen = numbers[start : start + batch_size]
      rows = min(_power_of_two(len(chosen)), batch_size)
      rows = -(-rows // shards) * shards
      # Repeats of the first prompt fill up: they end when it does.
      batches.append((length, chosen + chosen[:1] * (rows - len(chosen))))
  return batches


def _power_of_two(number: int) -> int:
  return 1 << (number - 1).bit_length()


def _pad_left(
  prompts: Sequence[Sequence[int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.zeros((len(prompts), length), np.int32)
  padding = np.asarray([length - len(p) for p in prompts], np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, padding[row] :] = prompt
  return tokens, padding


def _check(
  definition: Definition,
  prompts: Sequence[Sequence[int]],
  max_new_tokens: int,
  temperature: float,
  top_k: int,
  top_p: float,
) -> None:
  vocab = definition.config.vocab_size
  for number, prompt in enumerate(prompts):
    if not len(prompt):
      raise UserError(
        f"prompt {number} is empty; a model needs one token at least, for "
        "example its BOS."
      )
    if not 0 <= min(prompt) <= max(prompt) < vocab:
      raise UserError(
        f"prompt {number} has token ids from {min(prompt)} to {max(prompt)}; "
        f"the model has 0 to {vocab - 1}. Use the model's own tokenizer."
      )
  if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise UserError(
      f"sampling with max_new_tokens={max_new_tokens}, temperature="
      f"{temperature}, top_k={top_k}, top_p={top_p}: the first must be at "
      "least 1, temperature and top_k must not be negative, and top_p must be "
      "above 0 and at most 1."
    )
