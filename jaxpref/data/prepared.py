"""The prepared cache: data tokenised once, automatically, before training.

A preparation is a folder named by a hash of all it depends on: the bytes of
the files, the tokenizer, format, limits and rules. It gets its name when it is
complete, so that one that was killed is never taken for a cache, and two
processes may prepare the same at once.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from typing import Any
import uuid

from jaxpref import config
from jaxpref.data import formats, read, tokenizer
from jaxpref.data.arrays import read_arrays
from jaxpref.data.build import write_folder
from jaxpref.data.cache import ARRAYS, MANIFEST, REJECTED, Prepared
from jaxpref.data.holdout import split_holdout
from jaxpref.errors import UserError

__all__ = ["Prepared", "prepare", "split_holdout"]

RULES_VERSION = 6  # of reading, formats and tokens; part of the key


def prepare(
  data: config.Data,
  path: str,
  tokenizer_folder: str,
  cache_dir: pathlib.Path | None = None,
) -> Prepared:
  """The tokenised examples of `path`, made now or found in the cache.

  Args:
    data: format, max_length, max_prompt_length, truncate and max_rejected.
    path: as data.path or data.eval_path; see `source.source_files`.
    tokenizer_folder: a folder with the tokenizer's files.
    cache_dir: where preparations are; by default $JAXPREF_CACHE, or
      ~/.cache/jaxpref, and there `prepared`.

  Raises UserError for files that cannot be read, more refused rows than
  data.max_rejected, nothing left to use, or a tokenizer that does not suit.
  """
  formats.check_format(data.format)
  files = read.source_files(path)
  depends = {
    "rules": RULES_VERSION,
    "files": {file.name: file.digest() for file in files},
    "tokenizer": tokenizer.fingerprint(tokenizer_folder),
    **{name: getattr(data, name) for name in _KEYS},
  }
  folder = find_folder(
    depends,
    lambda folder: write_folder(folder, files, data, tokenizer_folder, depends),
    cache_dir,
  )
  prepared = Prepared(folder)
  check_refusals(prepared, data, path)
  if not prepared.stats["examples"]:  # which opens no array
    raise UserError(_nothing_left(prepared.stats, data, path))
  return prepared


_KEYS = ("format", "max_length", "max_prompt_length", "truncate")


def find_folder(
  depends: Mapping[str, Any],
  write: Callable[[pathlib.Path], None],
  cache_dir: pathlib.Path | None = None,
) -> pathlib.Path:
  """The preparation that depends on these, which `write` writes if need be."""
  key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]
  root = cache_dir or config.cache_folder() / "prepared"
  with _told_apart(root):
    root.mkdir(parents=True, exist_ok=True)
    if not _is_whole(root / key):
      with _published(root / key) as folder:
        write(folder)
  return root / key


@contextlib.contextmanager
def _told_apart(root: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"Preparing the data failed: {error}. The prepared data are kept in "
      f"{root}; set JAXPREF_CACHE to a folder with room that can be written."
    ) from error


def _is_whole(folder: pathlib.Path) -> bool:
  """Whether the folder is there; a damaged one is removed."""
  if not folder.exists():
    return False
  try:
    read_arrays(folder / ARRAYS)
    json.loads((folder / MANIFEST).read_text())
    return (folder / REJECTED).is_file()
  except (UserError, OSError, ValueError):
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    os.rename(folder, aside)  # at once, should another process look
    shutil.rmtree(aside, ignore_errors=True)
    return False


@contextlib.contextmanager
def _published(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder, which gets the name `folder` if all goes well."""
  partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
  partial.mkdir()
  try:
    yield partial
    try:
      os.rename(partial, folder)
    except OSError:
      if not folder.exists():  # else another process made the same meanwhile
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_refusals(prepared: Prepared, data: config.Data, path: str) -> None:
  """Raises UserError where more rows are refused than data.max_rejected."""
  stats = prepared.stats
  refused = sum(stats["refused"].values())
  if refused > data.max_rejected * stats["rows"]:
    with open(prepared.rejected_file) as lines:
      first = [json.loads(line) for line in itertools.islice(lines, 3)]
    told = "; ".join(f"{r['file']}:{r['row']}: {r['reason']}" for r in first)
    kinds = ", ".join(f"{n} {kind}" for kind, n in stats["refused"].items())
    raise UserError(
      f"{path}: {refused} of {stats['rows']} rows are refused ({kinds}), and "
      f"data.max_rejected={data.max_rejected:g} allows "
      f"{int(data.max_rejected * stats['rows'])}. The first: {told}. All are "
      f"listed in {prepared.rejected_file}. Mend the rows, or raise "
      "config.data.max_rejected to leave them out."
    )


def _nothing_left(
  stats: Mapping[str, Any], data: config.Data, path: str
) -> str:
  unused = [*stats["dropped"].items(), *stats["refused"].items()]
  kinds = ", ".join(f"{n} {kind}" for kind, n in unused)
  lengths = stats["lengths"]
  return (
    f"{path}: no example is left of {stats['rows']} rows ({kinds}). "
    f"A prompt with its longest response has "
    f"{lengths['min']} tokens at least, {lengths['median']} in the median and "
    f"{lengths['max']} at most; the limits are data.max_length="
    f"{data.max_length} and data.max_prompt_length={data.max_prompt_length} "
    "(0 = none). Raise config.data.max_length (or max_prompt_length), or set "
    "config.data.truncate to keep_start or keep_end."
  )
