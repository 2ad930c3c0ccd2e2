"""Training scripts of other libraries, which import our losses alone."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


def _run(arguments):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-W", "error", *arguments],
    env=environment,
    cwd=SCRIPTS.parents[1],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize("name", ["train_linen", "train_equinox"])
def test_a_script_learns_preferences(name):
  """From ln 2, where all pairs are ties, to every pair as it was labelled."""
  done = _run([SCRIPTS / f"{name}.py"])
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  first, last = map(json.loads, done.stdout.splitlines())
  assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
  assert first["accuracy"] == 0
  assert last["loss"] < 0.1
  assert last["accuracy"] == 1


def test_losses_bring_no_other_library():
  """Neither the rest of jaxpref nor what only its training loop needs."""
  code = (
    "import sys; from jaxpref import losses; "
    "print(*sorted({name.split('.')[0] for name in sys.modules})); "
    "print(*sorted(x for x in sys.modules if x.startswith('jaxpref.')))"
  )
  done = _run(["-c", code])
  assert done.returncode == 0, done.stderr
  libraries, ours = (line.split() for line in done.stdout.splitlines())
  heavy = {
    "flax",
    "optax",
    "orbax",
    "grain",
    "transformers",
    "torch",
    "equinox",
  }
  assert not heavy & set(libraries)
  known = ("jaxpref.losses", "jaxpref.types")
  assert all(name.startswith(known) for name in ours)
