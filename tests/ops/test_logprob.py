"""Token log-probs against log_softmax, and how little memory they take."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import TypeCheckError
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.ops.logprob import token_logp

ROWS, TOKENS, EMBED, VOCAB = 2, 24, 16, 40


def _inputs(dtype="float32", rows=ROWS):
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = 2.0 * jax.random.normal(keys[0], (rows, TOKENS, EMBED), dtype)
  kernel = jax.random.normal(keys[1], (EMBED, VOCAB), dtype)
  target = jax.random.randint(keys[2], (rows, TOKENS), 0, VOCAB)
  return hidden, kernel, target


def _plain(hidden, kernel, target):
  logits = jnp.einsum(
    "rtd,dv->rtv",
    hidden.astype(jnp.float32),
    kernel.astype(jnp.float32),
    precision="highest",
  )
  logp = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]


def _grads(logp, hidden, kernel, target):
  """Of a sum whose terms differ, so that a wrong order of tokens is seen."""
  probe = jnp.sin(jnp.arange(target.size)).reshape(target.shape)
  total = lambda hidden, kernel: jnp.sum(probe * logp(hidden, kernel, target))
  return jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, kernel)


# One token, blocks that divide 24, that do not, and more than all.
@pytest.mark.parametrize("block", [1, 5, 6, 7, 24, 23, 100])
def test_log_softmax(block):
  inputs = _inputs()
  ours = functools.partial(token_logp, block=block)
  expected = _plain(*inputs)
  assert np.ptp(expected) > 10  # nats: a wrong target would show
  # Measured: 4e-6 of values of up to 47, 1e-6 of gradients of up to 10.
  np.testing.assert_allclose(jax.jit(ours)(*inputs), expected, atol=1e-5)
  for a, b in zip(_grads(ours, *inputs), _grads(_plain, *inputs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_tokens():
  hidden, kernel, target = _inputs()
  out = token_logp(hidden[:, :0], kernel, target[:, :0], block=4)
  assert out.shape == (ROWS, 0)


def test_bfloat16_accumulates_in_float32():
  """512 products of 1 and 1 / 256 make 2; in bfloat16 the sum would stick."""
  hidden = jnp.ones((1, 1, 512), jnp.bfloat16)
  kernel = jnp.stack([jnp.full(512, 1 / 256), jnp.zeros(512)], axis=1)
  kernel = kernel.astype(jnp.bfloat16)
  out = token_logp(hidden, kernel, jnp.zeros((1, 1), jnp.int32), block=1)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out[0, 0], -np.log1p(np.exp(-2.0)), rtol=1e-6)


def test_bfloat16_is_as_exact_as_its_inputs():
  inputs = _inputs("bfloat16")
  ours = functools.partial(token_logp, block=7)
  out = ours(*inputs)
  assert out.dtype == jnp.float32
  # Products of bfloat16 numbers are exact in float32. Measured: 2e-6.
  np.testing.assert_allclose(out, _plain(*inputs), atol=1e-5)
  for a, b in zip(_grads(ours, *inputs), _grads(_plain, *inputs), strict=True):
    assert a.dtype == b.dtype == jnp.bfloat16
    scale = np.abs(b.astype(jnp.float32)).max()
    # A bfloat16 has 8 bits, and so have the sums of the kernel's gradient
    # over blocks. Measured: 0.004 of the largest.
    np.testing.assert_allclose(
      a.astype(jnp.float32), b.astype(jnp.float32), atol=0.02 * scale
    )


def test_very_large_logits_stay_finite():
  hidden, kernel, target = _inputs()
  ours = functools.partial(token_logp, block=5)
  assert np.isfinite(ours(1e4 * hidden, kernel, target)).all()
  for grad in _grads(ours, 1e4 * hidden, kernel, target):
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("what", ["forward", "backward"])
def test_logits_are_never_whole(what):
  """Temporary memory by tokens, not by tokens times vocabulary."""
  tokens, embed, vocab, block = 16384, 8, 4096, 64
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  shapes = (f32((1, tokens, embed)), f32((embed, vocab)))
  target = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  logits = tokens * vocab * 4  # bytes

  def temporary(logp):
    total = lambda *args: jnp.sum(logp(*args))
    function = jax.grad(total, argnums=(0, 1)) if what == "backward" else logp
    compiled = jax.jit(function).lower(*shapes, target).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # The logits of a block are 1 MiB, of 256 MiB for all.
  assert temporary(functools.partial(token_logp, block=block)) < logits / 32
  assert temporary(_plain) >= logits  # the measure would have seen it


@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 2, 2), (1, 8, 1)], ids=str)
def test_sharded_vocabulary(sizes):
  mesh = sharding.make_mesh(*sizes)
  inputs = hidden, kernel, target = _inputs(rows=8)
  place = functools.partial(jax.NamedSharding, mesh)
  rows = sharding.batch_sharding(mesh, axis=0)
  placed = (
    jax.device_put(hidden, rows),
    jax.device_put(kernel, place(sharding.spec(("embed", "vocab")))),
    jax.device_put(target, rows),
  )
  ours = functools.partial(token_logp, block=5)
  with jax.set_mesh(mesh):
    values = jax.jit(ours)(*placed)
    grads = _grads(ours, *placed)
    compiled = jax.jit(ours).lower(*placed).compile().as_text()
  # Measured: 4e-6 and 1e-6.
  np.testing.assert_allclose(values, _plain(*inputs), atol=1e-5)
  for a, b in zip(grads, _grads(_plain, *inputs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # Each shard of the vocabulary keeps its part of the logits.
  shard = f"f32[{8 // sizes[0] // sizes[1]},5,{VOCAB // sizes[2]}]"
  assert shard in compiled
  assert sizes[2] == 1 or not any(
    f",5,{VOCAB}]" in line for line in compiled.splitlines()
  )


@pytest.mark.parametrize("change", ["kernel", "target", "hidden"])
def test_shapes_that_do_not_fit_are_refused(change):
  hidden, kernel, target = _inputs()
  if change == "kernel":
    kernel = kernel.T
  if change == "target":
    target = target[:, :-1]
  if change == "hidden":
    hidden = hidden[0]
  with pytest.raises(TypeCheckError):
    token_logp(hidden, kernel, target, block=4)


def test_kernel_gradient_of_many_blocks_adds_up_in_float32():
  """In bfloat16 a sum stops growing once it is 256 times what is added."""
  tokens, width, vocab = 4096, 2, 4
  hidden = jnp.ones((1, tokens, width), jnp.bfloat16)
  kernel = jnp.zeros((width, vocab), jnp.bfloat16)
  target = jnp.zeros((1, tokens), jnp.int32)
  total = lambda kernel: jnp.sum(token_logp(hidden, kernel, target, block=4))
  gradient = jax.grad(total)(kernel).astype(jnp.float32)
  # p is 1/4 of each entry: the target's grows by 3/4 a token.
  expected = tokens * np.asarray([[0.75, -0.25, -0.25, -0.25]] * width)
  np.testing.assert_allclose(gradient, expected, rtol=2**-8)
