"""docs/losses.md and its plots say what the losses say."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

from jaxpref import losses

DOCS = pathlib.Path(__file__).parents[1] / "docs"
AGAIN = "run `make docs` and commit what it writes"


@pytest.fixture(scope="module")
def make_losses():
  path = DOCS / "make_losses.py"
  spec = importlib.util.spec_from_file_location("make_losses", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_page_is_that_of_the_docstrings(make_losses):
  page = (DOCS / "losses.md").read_text(encoding="utf-8")
  assert page == make_losses.page(), AGAIN
  for name in losses.names():
    assert page.count(f"\n### {name}\n") == 1
    section = page.partition(f"\n### {name}\n")[2].partition("\n##")[0]
    for part in ("```text", "**Use**", "**Inputs**", "**Returns**"):
      assert part in section or name == "sft", (name, part)


@pytest.fixture(scope="module")
def drawn(make_losses, tmp_path_factory):
  folder = tmp_path_factory.mktemp("plots")
  make_losses.plot(folder)
  return folder


@pytest.mark.parametrize("file", ["losses.svg", "loss_gradients.svg"])
def test_the_plots_are_those_of_the_losses(drawn, file):
  kept, made = ((each / file).read_text() for each in (DOCS, drawn))
  titles = lambda text: set(re.findall(r">(\w+)</text>", text))
  assert titles(kept) == titles(made), AGAIN
  assert {"dpo", "ipo", "simpo", "bradley_terry"} <= titles(kept)
  curves = lambda text: [
    np.array(re.findall(r"-?\d+\.\d+", path), float)
    for path in re.findall(r' d="(M[^"]+)"', text)
  ]
  for ours, theirs in zip(curves(kept), curves(made), strict=True):
    # In points of 1/72 inch; another machine rounds differently.
    np.testing.assert_allclose(ours, theirs, atol=0.05, err_msg=AGAIN)


def test_the_example_for_contributors_is_the_code():
  """And the loss is found by name, though nothing lists its file."""
  text = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
  files = ("jaxpref/losses/squared_hinge.py",
           "tests/losses/test_squared_hinge.py")  # fmt: skip
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  assert blocks == [(DOCS.parent / file).read_text() for file in files]
  assert losses.get("squared_hinge") is losses.squared_hinge
