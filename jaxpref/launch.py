"""`python -m jaxpref.launch --config=FILE --workdir=DIR [--config.KEY=VALUE]`.

Exit status: 0 done, or stopped by SIGTERM with all saved; 2 a mistake of the
user's, told in one paragraph; 1 a bug, with its traceback.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import signal
import sys

import jax

from jaxpref import config, hosts
from jaxpref.errors import UserError, paragraph


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  try:
    flags, overrides = _parse(sys.argv[1:] if argv is None else argv)
    if flags.debug:
      jax.config.update("jax_debug_nans", True)
    workdir = pathlib.Path(flags.workdir)
    if flags.plan:
      settings, _ = config.load(flags.config, overrides)
      _plan(settings, workdir, flags.plan)
      return 0
    processes = hosts.find(os.environ)
    hosts.order_collectives(os.environ, processes)
    if processes is not None:
      hosts.join(processes)
    settings, module = config.load(flags.config, overrides)
    # Seconds: a mistake above needs none of it.
    from jaxpref.fit.loss import check_suits
    from jaxpref.run import run

    make_inputs = getattr(module, "make_inputs", None)
    if make_inputs is not None:
      check_suits(settings)  # before the minutes that inputs may take
      settings = make_inputs(settings, workdir)
    if settings is not None:
      run(settings, workdir)
  except UserError as error:
    print(paragraph(str(error)), file=sys.stderr)
    return 2
  return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  parser = argparse.ArgumentParser(
    prog="python -m jaxpref.launch",
    allow_abbrev=False,
    description="Trains a model on preferences. Any key of the config can be "
    "overridden with --config.SECTION.KEY=VALUE; see configs/dpo.py.",
  )
  parser.add_argument("--config", required=True, help="a file of configs/")
  parser.add_argument(
    "--workdir", required=True, help="the run folder; a rerun resumes"
  )
  parser.add_argument(
    "--plan",
    default="",
    metavar="TOPOLOGY",
    help="compile the step for v5e:8x8, v5p:4x4x8, v6e:16x16, cpu:8 ... "
    "instead, and tell what it takes; needs no such device",
  )
  parser.add_argument(
    "--debug", action="store_true", help="stop at the first NaN"
  )
  flags, rest = parser.parse_known_args(argv)
  overrides = {}
  while rest:
    name, equals, value = rest.pop(0).partition("=")
    if not name.startswith("--config."):
      raise UserError(
        f"unknown argument {name!r}. Known: --config, --workdir, --plan, "
        "--debug and overrides such as --config.train.steps=100."
      )
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UserError(f"{name} has no value; write {name}=VALUE.")
      value = rest.pop(0)
    overrides[name.removeprefix("--config.")] = value
  return flags, overrides


def _plan(
  settings: config.Config, workdir: pathlib.Path, topology: str
) -> None:
  from jaxpref.plan import plan, stay_on_cpu

  stay_on_cpu(topology)
  print(plan(settings, workdir, topology))


def _leave_on_sigterm() -> None:
  """Until training begins, and after it, there is nothing to save.

  Files get their names when they are whole, so it is safe to leave at any
  moment. Of several processes none leaves by itself: see `fit.interrupt`.
  """

  def leave(number: int, frame: object) -> None:
    del number, frame
    os.write(2, b"\nStopped by SIGTERM; a rerun goes on from here.\n")
    sys.exit(0)

  try:
    alone = hosts.find(os.environ) is None
  except UserError:
    return  # which `main` tells
  if alone:
    signal.signal(signal.SIGTERM, leave)


if __name__ == "__main__":
  _leave_on_sigterm()
  sys.exit(main())
