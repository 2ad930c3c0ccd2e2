"""The table of docs/certificates.md, filled by `make certify`."""

from collections.abc import Callable, Iterator
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re

import pytest

_PACKAGES = (
  "jax",
  "flax",
  "optax",
  "orbax-checkpoint",
  "transformers",
  "torch",
)
_COLUMNS = ("What", "Measured", "Bar", "Holds", "How", "Date")

Certify = Callable[[str, str, str, bool], None]


@pytest.fixture(scope="session")
def _table() -> Iterator[dict[str, list[str]]]:
  rows: dict[str, list[str]] = {}
  yield rows
  # A run of some tests replaces their rows and keeps the others.
  if (name := os.environ.get("JAXPREF_CERTIFICATES")) and rows:
    path = pathlib.Path(name)
    path.write_text(_page({**_read(path), **rows}))


@pytest.fixture
def certify(_table: dict[str, list[str]]) -> Certify:
  """certify(what, measured, bar, holds): a row of the table; asserts it."""
  test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
  today = datetime.date.today().isoformat()

  def add(what: str, measured: str, bar: str, holds: bool) -> None:
    answer = "yes" if holds else "**no**"
    _table[what] = [what, measured, bar, answer, f"`{test}`", today]
    assert holds, f"{what}: measured {measured}, must be {bar}"

  return add


def _read(path: pathlib.Path) -> dict[str, list[str]]:
  if not path.exists():
    return {}
  lines = [line for line in path.read_text().splitlines() if "| `" in line]
  rows = [line.strip("| ").split(" | ") for line in lines]
  return {row[0]: row for row in rows}


def _page(rows: dict[str, list[str]]) -> str:
  versions = ", ".join(
    f"{p} {importlib.metadata.version(p)}" for p in _PACKAGES
  )
  lines = [
    "# Certificates",
    "",
    "Whole runs through the command line, against their references. Written by "
    "`make certify`;\na row is replaced when its test runs again.",
    "",
    f"Last run: Python {platform.python_version()}, {versions}; "
    f"{_processor()}, {os.cpu_count()} cores, no accelerator.",
    "",
    f"| {' | '.join(_COLUMNS)} |",
    f"|{'---|' * len(_COLUMNS)}",
    *(f"| {' | '.join(row)} |" for _, row in sorted(rows.items())),
  ]
  return "\n".join(lines) + "\n"


def _processor() -> str:
  path = pathlib.Path("/proc/cpuinfo")
  text = path.read_text() if path.exists() else ""
  found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
  return found[1].strip() if found else platform.machine()
