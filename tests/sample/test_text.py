"""Generation: the published text, the filters and the keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.models.build import bind, define, init_params
from jaxpref.models.huggingface import load_params, read_config
from jaxpref.models.llama.config import LlamaConfig
from jaxpref.ops.attention import Kind, padded_attention
from jaxpref.sample.text import _cached_attention, generate, sample_token

CONFIG = LlamaConfig.from_arch(
  {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 1.0,
  }
)
PROMPTS = [[1], [1, 7, 9, 30], [1, 5], list(range(1, 20))]


@pytest.fixture(scope="module")
def model():
  definition = define(CONFIG, dtype="float32")
  return definition, init_params(definition, jax.random.key(0))


def test_stories_greedy_text(shared):
  folder = shared / "models" / "stories260K"
  definition = define(read_config(folder), dtype="float32")
  params = load_params(folder, definition)
  (out,) = generate(
    definition, params, [[1]], max_new_tokens=256, temperature=0.0
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  text = tokenizer.decode([1, *out], skip_special_tokens=True)
  expected = (folder / "expected_greedy.txt").read_text()
  assert text.strip() == expected.strip()


# Soft-caps, windows shorter than the texts, three layers in periods of two.
GEMMA = LlamaConfig.from_arch(
  {
    "model_type": "gemma2",
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 3,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 1.0,
    "initializer_range": 0.3,
  }
)


@pytest.mark.parametrize("config", [CONFIG, GEMMA], ids=["llama", "gemma2"])
def test_greedy_is_the_likeliest_token_of_the_whole_sequence(config):
  """The cache, against reading everything again for each token."""
  definition = define(config, dtype="float32")
  params = init_params(definition, jax.random.key(0))
  outs = generate(
    definition, params, PROMPTS, max_new_tokens=6, temperature=0.0
  )

  @jax.jit
  def likeliest(tokens, valid):
    bound = bind(definition, params)
    place = jnp.arange(32, dtype=jnp.int32)[None]
    hidden, _ = bound(tokens, place, padded_attention(valid))
    return jnp.argmax(hidden @ bound.head_kernel(), axis=-1)

  for prompt, out in zip(PROMPTS, outs, strict=True):
    ids = list(prompt)
    for token in out:
      tokens = np.zeros((1, 32), np.int32)
      tokens[0, : len(ids)] = ids
      valid = np.arange(32)[None] < len(ids)
      expected = likeliest(jnp.asarray(tokens), jnp.asarray(valid))
      assert token == expected[0, len(ids) - 1]
      ids.append(token)


def test_the_cache_keeps_windows_and_caps():
  """Five tokens read at once and four one by one, against all at once."""
  kind = Kind(scale=0.5, window=3, softcap=1.0)
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
  valid = jnp.arange(9)[None] >= jnp.array([[0], [2]])
  cache = (jnp.zeros((2, 9, 2, 4)),) * 2
  outs = []
  for part in (slice(0, 5), *(slice(i, i + 1) for i in range(5, 9))):
    attend = _cached_attention(part.start, jnp.array([0, 2]))
    now = (x[:, part] for x in (q, k, v))
    out, cache = attend(*now, cache, kind)
    outs.append(out)
  found = jnp.concatenate(outs, axis=1)[valid]
  expected, _ = padded_attention(valid)(q, k, v, None, kind)
  np.testing.assert_allclose(found, expected[valid], atol=1e-6)
  for other in (kind._replace(window=4), kind._replace(softcap=0.0)):
    wrong, _ = padded_attention(valid)(q, k, v, None, other)
    assert np.abs(found - wrong[valid]).max() > 1e-2


def test_capped_logits_are_drawn_from():
  definition = define(GEMMA, dtype="float32", remat="")
  params = init_params(definition, jax.random.key(0))
  outs = generate(definition, params, [[1, 5]] * 16, max_new_tokens=1, seed=3)
  bound = bind(definition, params)
  tokens, place = jnp.array([[1, 5]], jnp.int32), jnp.arange(2)[None]
  attend = padded_attention(jnp.ones((1, 2), bool))
  hidden, _ = bound(tokens, place.astype(jnp.int32), attend)
  logits = hidden[:, -1] @ bound.head_kernel()
  keys = [
    jax.random.fold_in(jax.random.fold_in(jax.random.key(3), row), 0)
    for row in range(16)
  ]

  def drawn(logits):
    rows = jnp.tile(logits, (16, 1))
    return sample_token(rows, jnp.stack(keys), temperature=1.0)[:, None]

  assert outs == drawn(jnp.tanh(logits)).tolist()
  assert outs != drawn(logits).tolist()


def test_one_candidate_is_greedy(model):
  greedy = generate(*model, PROMPTS, max_new_tokens=8, temperature=0.0)
  for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
    assert generate(*model, PROMPTS, max_new_tokens=8, **narrow) == greedy
  free = generate(*model, PROMPTS, max_new_tokens=8, seed=3)
  assert free != greedy


def test_the_batch_does_not_change_a_sample(model):
  together = generate(*model, PROMPTS, max_new_tokens=8, seed=5)
  for batch_size in (1, 2):
    apart = generate(
      *model, PROMPTS, max_new_tokens=8, seed=5, batch_size=batch_size
    )
    assert apart == together
  assert (
    generate(*model, PROMPTS[:2], max_new_tokens=8, seed=5) == (together[:2])
  )
  longer = generate(*model, PROMPTS, max_new_tokens=12, seed=5)
  assert [out[:8] for out in longer] == together
  same = generate(*model, [PROMPTS[0]] * 4, max_new_tokens=8, seed=5)
  assert len({tuple(out) for out in same}) == 4
  assert generate(*model, PROMPTS, max_new_tokens=8, seed=6) != together


def test_eos_stops_its_row_alone(model):
  free = generate(*model, PROMPTS, max_new_tokens=10, seed=1)
  eos = (free[0][3], free[1][5])
  stopped = generate(*model, PROMPTS, max_new_tokens=10, seed=1, eos_ids=eos)
  for all_of_it, out in zip(free, stopped, strict=True):
    ends = [i for i, token in enumerate(all_of_it) if token in eos]
    expected = all_of_it[: ends[0] + 1] if ends else all_of_it
    assert out == expected
  assert len(stopped[0]) <= 4


def test_sharded_sampling(model):
  definition, params = model
  alone = generate(definition, params, PROMPTS, max_new_tokens=6, seed=2)
  mesh = sharding.make_mesh(2, 2, 2)
  shardings = sharding.param_shardings(mesh, definition.shapes, definition.axes)
  with jax.set_mesh(mesh):
    spread = jax.device_put(params, shardings)
    out = generate(definition, spread, PROMPTS, max_new_tokens=6, seed=2)
  assert out == alone


PROBS = np.array([0.4, 0.3, 0.2, 0.06, 0.04])


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, PROBS),
    ({"temperature": 0.5}, PROBS**2),
    ({"top_k": 2}, PROBS * [1, 1, 0, 0, 0]),
    ({"top_p": 0.75}, PROBS * [1, 1, 1, 0, 0]),
    ({"top_p": 0.65}, PROBS * [1, 1, 0, 0, 0]),
    ({"top_k": 3, "top_p": 0.75}, PROBS * [1, 1, 0, 0, 0]),
  ],
  ids=["all", "temperature", "top_k", "top_p", "top_p_less", "both"],
)
def test_sample_token_frequencies(given, expected):
  shuffled = np.array([3, 0, 4, 2, 1])
  rows = 20_000
  logits = jnp.log(jnp.asarray(PROBS[shuffled], jnp.float32))[None]
  keys = jax.random.split(jax.random.key(0), rows)
  tokens = sample_token(
    jnp.tile(logits, (rows, 1)), keys, **{"temperature": 1.0, **given}
  )
  found = np.bincount(np.asarray(tokens), minlength=5) / rows
  expected = (expected / expected.sum())[shuffled]
  # One sigma of 20,000 draws is 0.0035.
  np.testing.assert_allclose(found, expected, atol=0.015)
  assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize(
  ("prompts", "given", "words"),
  [
    ([[1], []], {}, "prompt 1 is empty"),
    ([[1, 48]], {}, "token ids from 1 to 48"),
    ([[1]], {"top_p": 0.0}, "top_p=0.0"),
    ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
  ],
)
def test_wrong_use(model, prompts, given, words):
  with pytest.raises(UserError, match=words):
    generate(*model, prompts, max_new_tokens=2, **given)
