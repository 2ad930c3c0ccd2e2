"""Token log-probs against log_softmax, and how little memory they take."""

import functools
import re

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


def _plain(hidden, kernel, target, softcap=0.0):
  logits = jnp.einsum(
    "rtd,dv->rtv",
    hidden.astype(jnp.float32),
    kernel.astype(jnp.float32),
    precision="highest",
  )
  if softcap:
    logits = softcap * jnp.tanh(logits / softcap)
  logp = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]


def _grads(logp, hidden, kernel, target, argnums=(0, 1)):
  """Of a sum whose terms differ, so that a wrong order of tokens is seen."""
  probe = jnp.sin(jnp.arange(target.size)).reshape(target.shape)
  total = lambda hidden, kernel: jnp.sum(probe * logp(hidden, kernel, target))
  return jax.jit(jax.grad(total, argnums=argnums))(hidden, kernel)


# One entry, blocks that divide 40, that do not, and more than all.
@pytest.mark.parametrize("block", [1, 7, 8, 39, 40, 100])
def test_log_softmax(block):
  inputs = _inputs()
  ours = functools.partial(token_logp, block=block)
  expected = _plain(*inputs)
  assert np.ptp(expected) > 10  # nats: a wrong target would show
  # Measured: 4e-6 of values of up to 47, 1e-6 of gradients of up to 10.
  np.testing.assert_allclose(jax.jit(ours)(*inputs), expected, atol=1e-5)
  for a, b in zip(_grads(ours, *inputs), _grads(_plain, *inputs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("block", [7, 100])
def test_a_kernel_that_is_not_differentiated(block, softcap):
  """Its gradient is never formed, and the hidden states' is the same."""
  inputs = hidden, kernel, target = _inputs()
  ours = functools.partial(token_logp, block=block, softcap=softcap)
  plain = functools.partial(_plain, softcap=softcap)
  expected = _grads(plain, *inputs)[0]
  # Measured: 1e-6.
  np.testing.assert_allclose(
    _grads(ours, *inputs, argnums=0), expected, atol=1e-5
  )
  halves = _grads(ours, *inputs)  # the same from the other way of forming it
  np.testing.assert_allclose(halves[0], expected, atol=1e-5)
  total = lambda hidden, kernel: jnp.sum(ours(hidden, kernel, target))
  products = lambda program: str(program).count("dot_general")
  frozen = jax.make_jaxpr(jax.grad(total))(hidden, kernel)
  trained = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(hidden, kernel)
  assert (products(frozen), products(trained)) == (2, 4)


@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=["frozen", "trained"])
def test_softcap(argnums):
  inputs = _inputs()
  ours = functools.partial(token_logp, block=7, softcap=5.0)
  plain = functools.partial(_plain, softcap=5.0)
  assert np.abs(plain(*inputs) - _plain(*inputs)).max() > 1
  # Measured: 2e-6.
  np.testing.assert_allclose(ours(*inputs), plain(*inputs), atol=1e-5)
  expected = _grads(plain, *inputs, argnums=argnums)
  found = _grads(ours, *inputs, argnums=argnums)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
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


@pytest.mark.parametrize("what", ["forward", "frozen", "trained"])
def test_logits_are_never_whole(what):
  """Temporary memory by tokens, not by tokens times vocabulary."""
  tokens, embed, vocab, block = 16384, 8, 4096, 64
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  shapes = (f32((1, tokens, embed)), f32((embed, vocab)))
  target = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  logits = tokens * vocab * 4  # bytes

  def temporary(logp):
    total = lambda *args: jnp.sum(logp(*args))
    functions = {
      "forward": logp,
      "frozen": jax.grad(total),
      "trained": jax.grad(total, argnums=(0, 1)),
    }
    function = functions[what]
    compiled = jax.jit(function).lower(*shapes, target).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # The logits of a block are 4 MiB, of 256 MiB for all.
  assert temporary(functools.partial(token_logp, block=block)) < logits / 16
  assert temporary(_plain) >= logits  # the measure would have seen it


@pytest.mark.parametrize("sizes", [(1, 1, 8), (2, 2, 2), (1, 8, 1)], ids=str)
@pytest.mark.parametrize("argnums", [0, (0, 1)], ids=["frozen", "trained"])
def test_sharded_vocabulary(sizes, argnums):
  mesh = sharding.make_mesh(*sizes)
  inputs = hidden, kernel, target = _inputs(rows=8)
  place = functools.partial(jax.NamedSharding, mesh)
  rows = sharding.batch_sharding(mesh, axis=0)
  placed = (
    jax.device_put(hidden, rows),
    jax.device_put(kernel, place(sharding.spec(("embed", "vocab")))),
    jax.device_put(target, rows),
  )

  @jax.jit
  def both(hidden, kernel, target):
    ours = functools.partial(token_logp, block=3)
    values = ours(hidden, kernel, target)
    return values, _grads(ours, hidden, kernel, target, argnums)

  with jax.set_mesh(mesh):
    compiled = both.lower(*placed).compile()
    values, grads = compiled(*placed)
  # Measured: 4e-6 and 1e-6.
  np.testing.assert_allclose(values, _plain(*inputs), atol=1e-5)
  expected = _grads(_plain, *inputs, argnums)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  _check_traffic(compiled.as_text(), sizes)


def _check_traffic(program, sizes):
  """Logits stay where they are; a kernel is gathered whole, not by block."""
  tensor = sizes[2]
  gathered = set(re.findall(r"= f32\[([\d,]+)\]\S* all-gather", program))
  whole = f"{EMBED},{VOCAB // tensor}"  # over fsdp; the vocabulary stays cut
  assert gathered <= ({whole} if sizes[1] > 1 else set())
  loops = re.findall(r"op_name=\"[^\"]*while/body[^\"]*\"", program)
  assert loops
  assert not any("all_gather" in line for line in loops)
  # Each shard scores its part: of 3 entries, in blocks of as even a size.
  rows = 8 // sizes[0] // sizes[1]
  parts = -(-(VOCAB // tensor) // 3)
  size = -(-(VOCAB // tensor) // parts)
  assert f"f32[{rows},{TOKENS},{size}]" in program or (
    f"f32[{rows * TOKENS},{size}]" in program
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
