"""The rows of a tar file as webdataset writes them: samples of members.

Members that follow each other and agree up to the first dot of their names
are a sample, and what stands before that dot is its key. KEY.json holds the
row's columns; KEY.txt is the column prompt, KEY.NAME.txt the column NAME. An
image is KEY.NAME.png (or .jpg …), and the column NAME, unless a column of
KEY.json names it, as NAME.png. Members of other kinds are not read.

Nothing is written to disk, and links are not followed.
"""

from collections.abc import Iterator
import re
import tarfile
from typing import Any, NamedTuple

from jaxpref.data.columns import IMAGES, Refused
from jaxpref.data.containers import Damaged, Refusal, Row, Rows, parse_json
from jaxpref.data.pictures import MAX_PIXELS
from jaxpref.data.source import Source

MAX_BYTES = 4 * MAX_PIXELS
"""Of a member: an image that large, as a file that compresses nothing."""

# Key and the rest, as webdataset tells them apart.
_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__(?:$|/)")
_BLOCK = tarfile.BLOCKSIZE


class _Member(NamedTuple):
  key: str
  name: str  # after the key and its dot, in lower case
  info: tarfile.TarInfo


def read_tar(file: Source) -> Rows:
  """A row a sample, numbered in their order, whether refused or not."""
  with file.open() as source:
    number, seen, here = 0, set[str](), _Sample("")
    for member, data in _members(source):
      if member.key != here.key:
        if number:
          yield here.row(file.name, number)
        number, here = number + 1, _Sample(member.key)
        if member.key in seen:
          here.refuse("sample in pieces", "its members must follow each other")
        seen.add(member.key)
      here.add(member, data)
    if number:
      yield here.row(file.name, number)


class _Sample:
  """The members of one key."""

  def __init__(self, key: str):
    self.key = key
    self._data: dict[str, bytes] = {}
    self._refused: Refused | None = None

  def refuse(self, kind: str, detail: str) -> None:
    """Whole; the first reason stays."""
    self._refused = self._refused or Refused(kind, detail)

  def add(self, member: _Member, data: bytes | Refused) -> None:
    if isinstance(data, Refused):
      self.refuse(data.kind, data.detail)
    elif member.name in self._data:
      self.refuse("member twice", f"there are two of .{member.name}")
    else:
      self._data[member.name] = data

  def row(self, file: str, number: int) -> Row | Refusal:
    try:
      if self._refused:
        raise self._refused
      return self._row(file, number)
    except Refused as error:
      reason = f"sample {self.key}: {error}"
      return Refusal(file, number, error.kind, reason)

  def _row(self, file: str, number: int) -> Row:
    row: Row | Refusal = Row(file, number, {})
    if "json" in self._data:
      row = parse_json(file, number, self._data["json"])
    if isinstance(row, Refusal):
      kind, _, found = row.reason.partition(": ")
      raise Refused(row.kind, f".json is {kind}: {found}")
    values = dict(row.values)
    for name, data in self._data.items():
      column, _, kind = name.rpartition(".")
      if kind == "txt":
        values.setdefault(column or "prompt", _text(name, data))
      elif _is_image(name) and column:
        values.setdefault(column, name)
    images = {x: self._data[x] for x in self._data if _is_image(x)}
    return row._replace(values=values, key=self.key, members=images)


def _members(source: Any) -> Iterator[tuple[_Member, bytes | Refused]]:
  """What is of a sample; raises Damaged unless the archive is whole."""
  place = 0  # where the next member's header is
  try:
    with tarfile.open(fileobj=source, mode="r:", errors="replace") as archive:
      while (info := archive.next()) is not None:
        if archive.offset <= place:
          raise tarfile.ReadError("a member of negative size")
        place = archive.offset
        # Or it remembers all of them.
        archive.members.clear()  # type: ignore[attr-defined]
        if member := _named(info):
          yield member, _read(archive, member)
      place = archive.offset
  except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
    raise Damaged(
      f"not a whole tar file ({error}, at byte {place:,})"
    ) from None
  _check_end(source, place)


def _named(info: tarfile.TarInfo) -> _Member | None:
  found = _NAME.fullmatch(info.name)
  if info.isdir() or _META.match(info.name) or not found:
    return None
  key, name = found[1], found[2].lower()
  read = name == "json" or f".{name}".endswith((".txt", *IMAGES))
  return _Member(key, name, info) if read else None


def _read(archive: tarfile.TarFile, member: _Member) -> bytes | Refused:
  info = member.info
  if not info.isreg() or info.issparse():
    what = f".{member.name} is a link, a device or has holes"
    return Refused("member is not a file", what)
  if info.size > MAX_BYTES:
    told = f".{member.name} has {info.size:,} bytes, and {MAX_BYTES:,} are"
    return Refused("member too large", f"{told} allowed")
  found = archive.extractfile(info)
  assert found is not None  # it is of a file
  return found.read()


def _check_end(source: Any, place: int) -> None:
  """Where tarfile meets no header it says that all is read; zeros mean it."""
  source.seek(place)
  block = source.read(_BLOCK)
  if len(block) < _BLOCK:
    raise Damaged(
      f"not a whole tar file (it ends at byte {place + len(block):,} without "
      "the zeros that end one)"
    )
  if block.strip(b"\0"):
    raise Damaged(f"not a whole tar file (no header at byte {place:,})")
  while rest := source.read(2**20):
    if rest.strip(b"\0"):
      raise Damaged(
        f"more than one tar file (it goes on after its end, at byte {place:,})"
      )


def _is_image(name: str) -> bool:
  return f".{name}".endswith(IMAGES)


def _text(name: str, data: bytes) -> str:
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise Refused(
      "not UTF-8", f".{name}: {error.reason} at byte {error.start + 1}"
    ) from None
