"""Image preferences without the pixels: who is compared with whom.

A prepared folder as that of text, in which a prompt is the number of its
caption and a response the number of its image. So pairing, curricula, holdout
and order are those of text. Equal captions and equal images are stored once.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
from typing import Any

from jaxpref import config
from jaxpref.data import formats, read
from jaxpref.data.build import Table, Tally, records
from jaxpref.data.cache import MANIFEST, REJECTED
from jaxpref.data.columns import Refused
from jaxpref.data.pictured import pictured
from jaxpref.data.pictures import digest
from jaxpref.data.read import Refusal
from jaxpref.data.text import Tokens
from jaxpref.types import Image, Response, Video

LISTED = "listed.json"
"""The captions, and a digest of each image, by their numbers."""


def write_index(
  folder: pathlib.Path,
  files: Sequence[read.Source],
  data: config.Data,
  depends: Mapping[str, Any],
) -> None:
  """Decodes every image once, so that the index names none that cannot be."""
  names = {file.name: number for number, file in enumerate(files)}
  tally, table = Tally(), Table(folder, names)
  captions, images = _Numbers(), _Numbers()
  try:
    with open(folder / REJECTED, "w") as rejected:

      def refuse(refusal: Refusal) -> None:
        rejected.write(json.dumps(refusal._asdict()) + "\n")

      for record, _ in pictured(files, data.format, tally, refuse):
        if not isinstance(record.prompt, str):
          told = "an image shows one text, and no turns"
          tally.refuse(record, "prompt is not a text", told, refuse)
          continue
        shown = [images[digest(_image(each))] for each in record.responses]
        caption = captions[record.prompt]
        table.append(record, Tokens([caption], [[each] for each in shown]))
    fingerprint, counts = table.close()
  finally:
    table.abandon()
  listed = {"captions": list(captions), "images": list(images)}
  (folder / LISTED).write_text(json.dumps(listed))
  manifest = {
    "files": list(names),
    "formats": formats.explain(tally.formats),
    "axes": table.axes,
    "fingerprint": fingerprint,
    "stats": tally.stats()
    | counts
    | {"captions": len(captions), "images": len(images)},
    "depends": depends,
  }
  (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_images(
  files: Sequence[read.Source], name: str, listed: Sequence[str]
) -> Iterator[Image]:
  """The images with these digests, in their order, which is an index's.

  Some may also be in rows that were refused, before the row that numbers them.
  """
  left = iter(listed)
  wanted = next(left, None)
  for record in records(files, name, Tally(), lambda refusal: None):
    for response in record.responses:
      with contextlib.suppress(Refused):
        if wanted and digest(_image(response)) == wanted:
          yield _image(response)
          wanted = next(left, None)


def _image(response: Response) -> Image:
  content = response.content
  if isinstance(content, Video):
    return content.still
  if not isinstance(content, Image):
    raise Refused("response is not an image")
  return content


class _Numbers(dict[str, int]):
  """Numbers keys as they are asked for."""

  def __missing__(self, key: str) -> int:
    return self.setdefault(key, len(self))
