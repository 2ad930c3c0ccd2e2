"""Reads a compiled program: what it sends, and what it moves through memory.

XLA's own analysis counts the body of a loop once, and the layers of a model are
a loop; here it counts as often as it runs.
"""

from collections.abc import Iterator, Mapping
import functools
import math
import re
from typing import Any, NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Collective(NamedTuple):
  """All collectives of one kind in a step, for each chip."""

  times: float
  bytes: float  # that a chip sends


class Instruction(NamedTuple):
  name: str
  shape: str  # as HLO writes it, layout included
  opcode: str
  operands: tuple[str, ...]
  text: str  # of the whole line


class Program:
  """A compiled module by its text."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    inside = ""
    for line in text.splitlines():
      if match := _COMPUTATION.match(line):
        inside = match[2]
        self.computations[inside] = {}
        self.entry = inside if match[1] else self.entry
      elif match := _INSTRUCTION.match(line):
        name, shape, opcode, rest = match.groups()
        operands = tuple(_NAME.findall(rest.partition(")")[0]))
        found = Instruction(name, shape, opcode, operands, line)
        self.computations[inside][name] = found

  @functools.cached_property
  def runs(self) -> Mapping[str, float]:
    """How often each computation runs in a step."""
    runs = dict.fromkeys(self.computations, 0.0)

    def visit(name: str, times: float) -> None:
      runs[name] += times
      for found in self.computations[name].values():
        inner = times * (self._trips(found) if found.opcode == "while" else 1)
        for called in _called(found):
          visit(called, inner)

    visit(self.entry, 1.0)
    return runs

  def collectives(self) -> dict[str, Collective]:
    """What each chip sends, by kind.

    TPU's compiler cuts an asynchronous collective into pieces, each in a fusion
    that it overlaps with; those share a channel.
    """
    found: dict[Any, tuple[str, float, float]] = {}
    for name, instructions in self.computations.items():
      for each in instructions.values():
        kind = each.opcode.removesuffix("-start")
        if kind not in KINDS:
          continue
        size = _sent(kind, each)
        if name.startswith("all-reduce-scatter"):
          # What TPU's compiler writes so is one operation: the sum, of which
          # each chip keeps its part, and sends half as much.
          kind, size = "reduce-scatter", size / 2
        channel = re.search(r"channel_id=(\d+)", each.text)
        piece = name in self._fused and channel
        key = (kind, channel[1]) if channel and piece else (name, each.name)
        times = self.runs[name]
        # Pieces in one loop body run as often; one before the loop less.
        if times > found.get(key, ("", 0.0, 0.0))[1]:
          found[key] = (kind, times, size)
    totals: dict[str, Collective] = {}
    for kind, times, size in found.values():
      before, sent = totals.get(kind, Collective(0.0, 0.0))
      totals[kind] = Collective(before + times, sent + times * size)
    return dict(sorted(totals.items()))

  def traffic(self) -> float:
    """Bytes that a chip reads from and writes to its memory in a step.

    Each operation reads its operands and writes its result once; what lies in
    a TPU's vector memory is not counted.
    """
    moved = (
      self.runs[name] * self._moved(found, instructions)
      for name, instructions in self.computations.items()
      if self.runs[name] and name not in self._fused
      for found in instructions.values()
    )
    return sum(moved, 0.0)

  @functools.cached_property
  def _fused(self) -> set[str]:
    """Computations that are the inside of a fusion."""
    return {
      called
      for instructions in self.computations.values()
      for found in instructions.values()
      if found.opcode == "fusion"
      for called in _called(found)
    }

  def _trips(self, loop: Instruction) -> int:
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
      return int(match[1])
    # Loops of jax count from 0 to the constant in their condition.
    match = re.search(r"condition=%([\w.-]+)", loop.text)
    assert match is not None
    limits = (
      re.search(r"constant\((\d+)\)", found.text)
      for found in self.computations[match[1]].values()
      if found.opcode == "constant"
    )
    return max((int(limit[1]) for limit in limits if limit), default=1)

  def _moved(
    self, found: Instruction, around: Mapping[str, Instruction]
  ) -> float:
    if found.opcode in _FREE or found.opcode.endswith("-done"):
      return 0.0
    sizes = [_bytes(around[name].shape) for name in found.operands]
    if found.opcode in ("dynamic-slice", "slice", "gather"):
      return 2.0 * _bytes(found.shape)
    if found.opcode == "dynamic-update-slice":
      return 2.0 * sizes[1]
    written = _bytes(found.shape)
    if found.opcode == "fusion":
      inside = self.computations[_called(found)[0]]
      sizes = [
        min(size, _read_of(parameter, inside))
        for size, parameter in zip(sizes, _parameters(inside), strict=True)
      ]
      written = min(written, _written_of(inside))
    return sum(sizes) + written


_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$"
)
_NAME = re.compile(r"%([\w.-]+)")
_SHAPE = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\](\{[^}]*\})?")
_FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "after-all", "partition-id", "replica-id", "iota",
)  # fmt: skip
_CALLS = re.compile(
  r"(calls|body|condition|to_apply|branch_computations|true_computation|"
  r"false_computation|called_computations)=(?:\{([^}]*)\}|%([\w.-]+))"
)


def _called(found: Instruction) -> list[str]:
  """Computations that an instruction runs; not the sum in a reduction."""
  return [
    name
    for how, many, one in _CALLS.findall(found.text)
    if how != "to_apply" or found.opcode == "call"
    for name in (_NAME.findall(many) if many else [one])
  ]


def _arrays(shape: str) -> Iterator[tuple[float, bool]]:
  """Bytes of each array of a shape, and whether it lies in main memory."""
  for kind, bits, sizes, layout in _SHAPE.findall(shape):
    wide = 8 if kind == "pred" else int(bits or 0)
    count = math.prod(int(size) for size in sizes.split(",") if size)
    yield count * wide / 8, "S(" not in layout


def _bytes(shape: str) -> float:
  """Of the arrays of a shape that lie in main memory."""
  return sum((size for size, main in _arrays(shape) if main), 0.0)


def _all_bytes(shape: str) -> float:
  return sum((size for size, _ in _arrays(shape)), 0.0)


def _sent(kind: str, found: Instruction) -> float:
  """Bytes that each chip of a ring sends for a collective."""
  size, group = _all_bytes(found.shape), _group(found)
  if found.opcode.endswith("-start"):  # of a pair: what goes in, what comes out
    if kind == "all-gather":
      size *= group / (group + 1)
    elif kind != "all-reduce":
      size /= 2
  others = (group - 1) / group
  if kind == "all-reduce":
    return 2 * size * others
  if kind == "reduce-scatter":
    return size * (group - 1)
  return size if kind == "collective-permute" else size * others


def _group(found: Instruction) -> int:
  """How many chips take part in one collective."""
  text = found.text
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return match[1].count(",") + 1
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
    return int(match[1])
  if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", match[2]))
  return 1


def _parameters(inside: Mapping[str, Instruction]) -> list[Instruction]:
  """Of a fused computation, in order."""
  found = [each for each in inside.values() if each.opcode == "parameter"]

  def number(each: Instruction) -> int:
    match = re.search(r"parameter\((\d+)\)", each.text)
    assert match is not None
    return int(match[1])

  return sorted(found, key=number)


def _read_of(
  parameter: Instruction, inside: Mapping[str, Instruction]
) -> float:
  """What a fusion reads of an operand: only slices, if that is all it uses."""
  users = [x for x in inside.values() if parameter.name in x.operands]
  total = 0.0
  for user in users:
    if user.opcode == "bitcast":
      total += _read_of(user, inside)
    elif user.opcode in ("dynamic-slice", "slice", "gather"):
      total += _all_bytes(user.shape)
    elif (
      user.opcode == "dynamic-update-slice"
      and user.operands[0] == parameter.name
    ):
      pass  # written in place
    else:
      return math.inf
  return total


def _written_of(inside: Mapping[str, Instruction]) -> float:
  """What a fusion writes: only the update, where it updates in place."""
  root = next(x for x in inside.values() if "ROOT " in x.text)
  while root.opcode == "bitcast":
    root = inside[root.operands[0]]
  if root.opcode == "dynamic-update-slice":
    return _all_bytes(inside[root.operands[1]].shape)
  return math.inf
