"""Reference log-probs on disk, each under the tokens it belongs to.

A store is a folder for one reference: its weights and all else that its values
depend on. Each file in it holds some responses, under digests of their prompt's
and their own tokens. Files are only ever added, so a pass that was killed goes
on, other data with some of the same rows use those, and processes may write at
the same time.
"""

from collections.abc import Iterator
import hashlib
import json
import pathlib
from typing import Any

from jaxtyping import Bool, Float32, Int
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxpref.data.prepared import Prepared
from jaxpref.files import replacing

_DIGEST = 16  # bytes


class ReferenceStore:
  """The log-probs of one reference model."""

  def __init__(self, root: pathlib.Path, **depends: Any):
    """
    Args:
      root: where the folders of all stores are.
      depends: what the values depend on beside the tokens, for JSON.
    """
    self._depends = json.dumps(depends, sort_keys=True)
    self.folder = root / _digest(self._depends.encode()).hex()

  def find(
    self, data: Prepared
  ) -> tuple[Float32[np.ndarray, " tokens"], Bool[np.ndarray, " m"]]:
    """The log-probs that are there.

    Returns: of every response token of the data in its order, in nats (0
    where it is not known), and which responses are known.
    """
    values = np.zeros(data.first_token[-1], np.float32)
    known = np.zeros(len(data.response_lengths), bool)
    wanted: dict[bytes, list[int]] = {}
    for number, key in enumerate(_keys(data)):
      wanted.setdefault(key, []).append(number)
    for key, logp in self._stored():
      for number in wanted.get(key, []):
        if len(logp) == data.response_lengths[number]:
          first = data.first_token[number]
          values[first : first + len(logp)] = logp
          known[number] = True
    return values, known

  def add(
    self,
    data: Prepared,
    responses: Int[np.ndarray, " k"],
    values: Float32[np.ndarray, " tokens"],
  ) -> None:
    """Writes the values of these responses; `values` are as `find` has them."""
    keys = list(_keys(data, responses))
    lengths = data.response_lengths[responses]
    first = data.first_token[responses]
    spans = zip(first, first + lengths, strict=True)
    self.folder.mkdir(parents=True, exist_ok=True)
    _write_text(self.folder / "reference.json", self._depends)
    # Named by what is in it: the same again takes its own place.
    name = _digest(b"".join(keys)).hex()
    with replacing(self.folder / f"{name}.safetensors") as partial:
      arrays = {
        "key": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _DIGEST),
        "length": lengths.astype(np.int32),
        "token_logp": np.concatenate([values[a:b] for a, b in spans]),
      }
      save_file(arrays, partial)

  def _stored(self) -> Iterator[tuple[bytes, np.ndarray]]:
    for path in sorted(self.folder.glob("*.safetensors")):
      try:
        arrays = load_file(path)
        keys, lengths = arrays["key"], arrays["length"]
        parts = np.split(arrays["token_logp"], np.cumsum(lengths)[:-1])
        rows = list(zip(keys, parts, lengths, strict=True))
      except (OSError, KeyError, ValueError, SafetensorError):
        continue  # damaged: as if it were not there
      yield from (
        (key.tobytes(), part) for key, part, size in rows if len(part) == size
      )


def _keys(
  data: Prepared, responses: Int[np.ndarray, " k"] | None = None
) -> Iterator[bytes]:
  """A digest of the prompt and of the tokens of each response."""
  example = np.repeat(np.arange(len(data)), np.diff(data.first_response))
  numbers = range(len(example)) if responses is None else responses
  for number in numbers:
    prompt = data.prompt(example[number])
    # The length keeps apart what is cut in another place.
    parts = np.int32(len(prompt)), prompt, data.response(number)
    yield _digest(b"".join(part.tobytes() for part in parts))


def _digest(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=_DIGEST).digest()


def _write_text(path: pathlib.Path, text: str) -> None:
  if not path.exists():
    with replacing(path) as partial:
      partial.write_text(text, encoding="utf-8")
