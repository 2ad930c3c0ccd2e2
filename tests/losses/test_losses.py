"""The public face of `jaxpref.losses`, and how a loss gets there."""

import importlib

import jax.numpy as jnp
from jaxtyping import Array, Float32
import pytest

from jaxpref import losses
from jaxpref.losses import registry

# What users of the command line and of the library rely on.
CONTRACT = (
  "dpo", "ipo", "hinge", "robust_dpo", "exo", "nca", "bco_pair", "sppo_hard",
  "aot", "apo_zero", "apo_down", "discopop", "simpo", "cpo", "orpo", "kto",
  "mapo", "rank_dpo", "plackett_luce", "bradley_terry", "grpo", "sft",
)  # fmt: skip


def test_names_that_others_rely_on():
  assert set(CONTRACT) <= set(losses.names())


@pytest.mark.parametrize("name", losses.names())
def test_get_by_name(name):
  assert losses.get(name) is getattr(losses, name)
  assert name in losses.__all__


def test_an_unknown_name_names_the_nearest():
  with pytest.raises(ValueError, match=r"no loss 'dpoo'; known: dpo"):
    losses.get("dpoo")
  with pytest.raises(ValueError, match=r"known: .*aot.*, dpo, .*simpo"):
    losses.get("zzzzzz")


@pytest.mark.parametrize("name", ["get", "jax", "pairwise", "kto_kl", ""])
def test_what_is_no_loss_is_not_got(name):
  with pytest.raises(ValueError, match="there is no loss"):
    losses.get(name)


def test_a_new_loss_is_found_by_its_decorator(monkeypatch):
  monkeypatch.setattr(registry, "_LOSSES", {})
  monkeypatch.setattr(registry, "_SPECS", {})

  @registry.loss("pair", coupled=True, nll_weight=0.5)
  def mine(
    chosen_logp: Float32[Array, "*pairs"], *, beta: float = 1.0
  ) -> Array:
    return beta * chosen_logp

  assert losses.get("mine") is mine
  assert losses.names() == ["mine"]
  assert losses.spec(mine) == ("pair", True, 0.5)
  assert losses.inputs(mine) == ["chosen_logp"]
  assert mine(jnp.ones(2)).tolist() == [1.0, 1.0]
  registry.loss("pair")(mine)  # a reload
  mine.__module__ = "other"
  with pytest.raises(ValueError, match="has a loss 'mine' already"):
    registry.loss("pair")(mine)


def test_a_file_may_be_reloaded():
  before = losses.get("squared_hinge")
  module = importlib.reload(importlib.import_module(before.__module__))
  assert losses.get("squared_hinge") is module.squared_hinge
  registry._LOSSES["squared_hinge"] = before  # what other tests compare with
