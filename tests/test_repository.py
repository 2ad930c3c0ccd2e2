"""Promises that the repository makes about itself."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import jaxpref

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_no_file_names_a_machine():
  # In pieces, so that this file does not find itself.
  paths = [f"/{top}/" for top in ("work", "home", "Users", "root", "opt")]
  hosts = ["pypi" + ".org", "pythonhosted" + ".org", "down" + "load.pytorch"]
  pattern = re.compile(
    r"(?<![\w.$}/])(?:" + "|".join(paths) + r")|" + "|".join(hosts)
  )
  found = [
    f"{path.relative_to(ROOT)}:{number}"
    for path in _tracked()
    for number, line in enumerate(_text(path).splitlines(), 1)
    if pattern.search(line)
  ]
  assert not found


def test_package_loads_nothing_that_can_run_code():
  pattern = re.compile(
    r"\bimport pickle|\bpickle\.|allow_pickle=True|\btorch\.load\b"
    r"|\byaml\.load\(|(?<![\w.])(?:eval|exec)\(|shell=True"
  )
  found = [
    f"{path.relative_to(ROOT)}:{number}"
    for path in _tracked()
    if path.suffix == ".py"
    and path.relative_to(ROOT).parts[0] in ("jaxpref", "configs", "benchmarks")
    for number, line in enumerate(_text(path).splitlines(), 1)
    if pattern.search(line)
  ]
  assert not found


def test_python_files_hold_one_concept():
  lines = {
    str(path.relative_to(ROOT)): len(_text(path).splitlines())
    for path in _tracked()
    if path.suffix == ".py"
  }
  assert lines
  assert not {path: count for path, count in lines.items() if count > 450}


def test_version_is_one():
  project = tomllib.loads(_text(ROOT / "pyproject.toml"))["project"]
  assert project["version"] == jaxpref.__version__


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_guide_names_files_and_targets_that_exist(name):
  text = _text(ROOT / name)
  files = set(
    re.findall(
      r"\b(?:configs|benchmarks|docs|jaxpref|launch|tests)/[\w./-]*\w", text
    )
  )
  modules = set(re.findall(r"python -m (jaxpref[\w.]*)", text))
  for module in modules:
    path = module.replace(".", "/")
    whole = (ROOT / path).is_dir()
    files.add(f"{path}/__main__.py" if whole else f"{path}.py")
  targets = set(re.findall(r"\bmake ([a-z]+)`", text))
  targets |= set(re.findall(r"^ *make ([a-z]+)", text, flags=re.MULTILINE))
  rules = set(
    re.findall(r"^([a-z]+):", _text(ROOT / "Makefile"), flags=re.MULTILINE)
  )
  assert files
  assert targets
  assert not {path for path in files if not (ROOT / path).exists()}
  assert not targets - rules


_IMPORT = """
import json, sys, time
start = time.process_time()
import jax
middle = time.process_time()
import jaxpref.losses
ratio = (time.process_time() - middle) / (middle - start)
print(json.dumps([ratio, sorted(set(n.split(".")[0] for n in sys.modules))]))
"""


def test_losses_are_light_to_import():
  # Beside jax itself, so that the machine does not matter: 0.3, and 0.9 where
  # every loss is made to check its shapes while it is imported.
  runs = [_run(_IMPORT) for _ in range(3)]
  for _, modules in runs:
    heavy = {"flax", "grain", "orbax", "transformers", "optax", "torch"}
    assert not heavy & set(modules)
  assert min(ratio for ratio, _ in runs) <= 0.6


def _run(program: str) -> tuple[float, list[str]]:
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(done.stdout)


def _tracked() -> list[pathlib.Path]:
  """The text files that belong to the repository."""
  listed = subprocess.run(
    ["git", "ls-files", "-z"],
    cwd=ROOT,
    check=False,
    capture_output=True,
    text=True,
  )
  paths = [ROOT / name for name in listed.stdout.split("\0") if name]
  if listed.returncode:  # an unpacked archive instead of a checkout
    folders = ("benchmarks", "configs", "docs", "jaxpref", "launch", "tests")
    paths = list(ROOT.glob("*"))
    paths += [
      path for folder in folders for path in ROOT.glob(f"{folder}/**/*")
    ]
  return [path for path in paths if path.is_file() and _is_text(path)]


def _is_text(path: pathlib.Path) -> bool:
  return b"\0" not in path.read_bytes()[:4096]


def _text(path: pathlib.Path) -> str:
  return path.read_text(encoding="utf-8", errors="replace")
