"""One side of a comparison in a process of its own, for the benchmarks."""

import argparse
from collections.abc import Sequence
import json
import subprocess
import sys
from typing import Any


def in_process(
  script: str, side: str, flags: argparse.Namespace, names: Sequence[str]
) -> dict[str, Any]:
  """What `script --side SIDE`, with these of the flags, prints as JSON."""
  command = [sys.executable, script, "--side", side]
  for name in names:
    command += [f"--{name}", str(getattr(flags, name))]
  out = subprocess.run(command, capture_output=True, text=True, check=False)
  if out.returncode:
    raise SystemExit(out.stderr[-4000:])
  return json.loads(out.stdout.splitlines()[-1])
