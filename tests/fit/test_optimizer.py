"""Optimizers and schedules against torch and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from jaxpref import config
from jaxpref.fit.optimizer import averaged, make_optimizer, make_schedule


def _settings(**given):
  return config.Optimizer(**{"learning_rate": 0.5, **given})


def _factors(make, **given):
  """Of transformers' schedule, by update; its optimizer does nothing."""
  optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
  schedule = make(optimizer, **given)
  for _ in range(10):
    yield schedule.get_last_lr()[0]
    optimizer.step()
    schedule.step()


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize(
  ("name", "theirs"),
  [
    ("constant", transformers.get_constant_schedule_with_warmup),
    ("linear", transformers.get_linear_schedule_with_warmup),
    ("cosine", transformers.get_cosine_schedule_with_warmup),
  ],
)
def test_schedules_are_those_of_transformers(name, theirs, warmup):
  ours = make_schedule(_settings(schedule=name, warmup_steps=warmup), 8)
  given = {"num_warmup_steps": warmup}
  if name != "constant":
    given["num_training_steps"] = 8
  expected = [0.5 * factor for factor in _factors(theirs, **given)]
  upto = 8  # updates; beyond the last the cosine of theirs rises again
  np.testing.assert_allclose(
    [ours(step) for step in range(upto)], expected[:upto], atol=1e-7
  )


def test_schedules_by_hand():
  linear = make_schedule(_settings(schedule="linear", warmup_steps=2), 6)
  told = [float(linear(step)) for step in range(8)]
  assert told == [0, 0.25, 0.5, 0.375, 0.25, 0.125, 0, 0]
  # A warm-up longer than the run only rises.
  rising = make_schedule(_settings(schedule="linear", warmup_steps=10), 4)
  np.testing.assert_allclose([rising(3), rising(10)], [0.15, 0.5])


def _params():
  rng = np.random.default_rng(0)
  array = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {
    "mlp": {"kernel": array(3, 4), "bias": array(4)},
    "norm": {"scale": array(4)},
    "embed": {"table": array(5, 3)},
  }


def _grads(step):
  """Of norms from 0.6 to 3, so that clipping at 1 bites at some steps."""
  rng = np.random.default_rng(step + 1)
  scale = np.float32(0.1 * (step + 1))
  return jax.tree.map(
    lambda x: scale * rng.normal(size=x.shape).astype(np.float32), _params()
  )


def _trained(tx, steps=5):
  params = jax.tree.map(jnp.asarray, _params())
  state = tx.init(params)
  for step in range(steps):
    updates, state = tx.update(_grads(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_adamw_is_torchs(grad_clip):
  settings = _settings(
    b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1, grad_clip=grad_clip
  )
  ours = _trained(make_optimizer(settings, lambda step: 0.01 * (step + 1)))

  tensors = jax.tree.map(
    lambda x: torch.nn.Parameter(torch.tensor(x)), _params()
  )
  decayed = [tensors["mlp"]["kernel"], tensors["embed"]["table"]]
  plain = [tensors["mlp"]["bias"], tensors["norm"]["scale"]]
  groups = [
    {"params": decayed, "weight_decay": 0.1},
    {"params": plain, "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.95), eps=1e-3)
  for step in range(5):
    for group in optimizer.param_groups:
      group["lr"] = 0.01 * (step + 1)
    give = lambda tensor, grad: setattr(tensor, "grad", torch.tensor(grad))
    jax.tree.map(give, tensors, _grads(step))
    if grad_clip:
      torch.nn.utils.clip_grad_norm_(decayed + plain, grad_clip)
    optimizer.step()
  # Measured: 3e-7; torch adds 1e-6 to the norm it divides by.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b.detach(), atol=3e-6),
    ours,
    tensors,
  )


def test_every_setting_changes_the_parameters():
  base = {"weight_decay": 0.1}
  changes = {
    "b1": 0.5, "b2": 0.5, "eps": 0.1, "weight_decay": 0.5, "grad_clip": 0.5,
  }  # fmt: skip
  constant = optax.constant_schedule(0.1)
  train = lambda **given: _trained(make_optimizer(_settings(**given), constant))
  reference = train(**base)
  for name, value in changes.items():
    other = train(**{**base, name: value})
    gap = jnp.max(jnp.abs(other["mlp"]["kernel"] - reference["mlp"]["kernel"]))
    assert gap > 1e-3, name


def test_a_learning_rate_of_zero_changes_nothing():
  settings = _settings(learning_rate=0.0, weight_decay=0.5)
  tx = make_optimizer(settings, make_schedule(settings, 5))
  jax.tree.map(np.testing.assert_array_equal, _trained(tx), _params())


def test_the_average_follows_the_parameters():
  settings = _settings(ema=0.75, grad_clip=0.5, schedule="constant")
  tx = make_optimizer(settings, make_schedule(settings, 4))
  plain = make_optimizer(
    _settings(grad_clip=0.5, schedule="constant"), make_schedule(settings, 4)
  )
  params = other = average = {"w": {"kernel": jnp.array([1.0, -2.0])}}
  state, plain_state = tx.init(params), plain.init(other)
  np.testing.assert_array_equal(
    averaged(state, None)["w"]["kernel"], params["w"]["kernel"]
  )
  for _ in range(3):
    grads = jax.tree.map(lambda x: 3.0 * x, params)
    updates, state = tx.update(grads, state, params)
    same, plain_state = plain.update(grads, plain_state, other)
    params = optax.apply_updates(params, updates)
    other = optax.apply_updates(other, same)
    average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, params)
  np.testing.assert_array_equal(params["w"]["kernel"], other["w"]["kernel"])
  np.testing.assert_allclose(
    averaged(state, None)["w"]["kernel"], average["w"]["kernel"], rtol=1e-6
  )
  assert averaged(plain_state, params) is params
