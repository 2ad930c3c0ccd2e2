"""The public face of `jaxpref.losses`."""

import doctest
import inspect

import jax.numpy as jnp
import pytest

from jaxpref import losses

NAMES = losses.names()


@pytest.mark.parametrize("name", NAMES)
def test_get_by_name(name):
  assert losses.get(name) is getattr(losses, name)


def test_an_unknown_name_names_the_nearest():
  with pytest.raises(ValueError, match=r"no loss 'dpoo'; known: dpo$"):
    losses.get("dpoo")
  with pytest.raises(ValueError, match=r"known: dpo, ipo, sft$"):
    losses.get("zebra")


@pytest.mark.parametrize("name", ["get", "jax", "pairwise", "__all__", ""])
def test_what_is_no_loss_is_not_got(name):
  with pytest.raises(ValueError, match="there is no loss"):
    losses.get(name)


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_run(name):
  loss = losses.get(name)
  finder = doctest.DocTestFinder(recurse=False)
  tests = finder.find(
    inspect.unwrap(loss), name, globs={"jnp": jnp, name: loss}
  )
  results = [doctest.DocTestRunner().run(test) for test in tests]
  assert sum(result.failed for result in results) == 0
  if losses.sft is not loss:  # which says all there is to it
    assert sum(result.attempted for result in results) > 0


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_are_keywords(name):
  """By which an objective tells them from what it must supply."""
  parameters = inspect.signature(losses.get(name)).parameters.values()
  known = ("chosen_", "rejected_", "token_logp")
  for each in parameters:
    keyword = each.kind is each.KEYWORD_ONLY
    assert keyword != each.name.startswith(known), each.name
