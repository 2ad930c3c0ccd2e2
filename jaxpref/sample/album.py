"""A folder of images: PNGs that say how they were made, and an overview."""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from jaxpref.data.columns import Refused
from jaxpref.data.pictures import decode
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.types import Image as Encoded

SAMPLES, _SHEET = "samples.jsonl", "contact_sheet.png"
_MOST, _SIDE, _TEXT = 100, 256, 34  # images on it, their pixels, the caption's


class Album:
  """`samples/` of a run folder; the files that are there need not be made.

  Each PNG has its prompt in the text chunk `prompt`, and in `settings` all
  that decided it, as JSON.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    prompts: Sequence[str],
    settings: Mapping[str, Any],
  ):
    """Image i is of prompts[i], made with `settings`.

    Raises UserError where the folder holds an image that was made otherwise.
    """
    self._folder, self._prompts = folder, prompts
    self._settings = dict(settings)
    for number in range(len(prompts)):
      if (path := self.path(number)).exists():
        self._check(path, number)

  def path(self, number: int) -> pathlib.Path:
    return self._folder / _name(number)

  def missing(self, numbers: Sequence[int]) -> bool:
    """Whether any of these is still to be made."""
    return any(not self.path(number).exists() for number in numbers)

  def put(self, number: int, pixels: np.ndarray) -> None:
    """Writes image `number`, [y, x, 3] of uint8, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", self._prompts[number])
    info.add_itxt("settings", json.dumps(self._told(number)))
    self._folder.mkdir(parents=True, exist_ok=True)
    with replacing(self.path(number)) as partial:
      Image.fromarray(pixels).save(partial, format="PNG", pnginfo=info)

  def close(self) -> pathlib.Path:
    """Writes samples.jsonl and the contact sheet, whose path it returns."""
    lines = (
      {
        "prompt": prompt,
        "response": self.path(number).name,
        "seed": self._settings["seed"],
        "image": number,
      }
      for number, prompt in enumerate(self._prompts)
    )
    with replacing(self._folder / SAMPLES) as partial:
      partial.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with replacing(sheet := self._folder / _SHEET) as partial:
      self._sheet().save(partial, format="PNG")
    return sheet

  def _told(self, number: int) -> dict[str, Any]:
    return {"image": number, **self._settings}

  def _check(self, path: pathlib.Path, number: int) -> None:
    try:
      with Image.open(path) as image:
        found = getattr(image, "text", {})
        before = {"prompt": found["prompt"], **json.loads(found["settings"])}
    except (OSError, KeyError, ValueError) as error:
      raise UserError(
        f"{path} is not an image of a run. Give another --workdir, or remove "
        "the file."
      ) from error
    now = {"prompt": self._prompts[number], **self._told(number)}
    changed = [
      f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
      for key in sorted(before.keys() | now.keys())
      if before.get(key) != now.get(key)
    ]
    if changed:
      raise UserError(
        f"{path} was made otherwise: {'; '.join(changed)}. Give another "
        "--workdir, or the old settings to go on with that run."
      )

  def _sheet(self) -> Image.Image:
    """The first images, row by row, each above the start of its prompt."""
    count = min(len(self._prompts), _MOST)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = columns * (_SIDE + 8) + 8, rows * (_SIDE + _TEXT + 8) + 8
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for number in range(count):
      row, column = divmod(number, columns)
      x, y = 8 + column * (_SIDE + 8), 8 + row * (_SIDE + _TEXT + 8)
      with Image.open(self.path(number)) as image:
        scale = _SIDE / max(image.size)
        width, height = (max(1, round(scale * side)) for side in image.size)
        thumb = image.resize((width, height))
      sheet.paste(thumb, (x, y))
      caption = _two_lines(f"{number}  {self._prompts[number]}", font)
      draw.text((x, y + _SIDE + 2), caption, fill="black", font=font)
    return sheet


def _name(number: int) -> str:
  return f"{number:05d}.png"


def _font() -> Any:
  # Matplotlib's knows many alphabets; Pillow's own, English alone.
  fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
  return ImageFont.truetype(fonts / "DejaVuSans.ttf", size=11)


def _two_lines(text: str, font: Any) -> str:
  """As much of a text as two lines below an image hold."""
  text, lines = " ".join(text.split())[:200], []
  for _ in range(2):
    end = len(text)
    while end and font.getlength(text[:end]) > _SIDE:
      end -= 1
    lines.append(text[:end].strip())
    text = text[end:]
  return "\n".join(lines) + ("…" if text else "")


def read_starts(
  path: str, prompts: Sequence[str]
) -> Callable[[int], np.ndarray]:
  """What images start from, by their numbers: [y, x, 3] of uint8.

  Args:
    path: an image, for all of them; or an album's folder, which has one each.
    prompts: of the images that are to be made.

  Raises UserError where one is missing, is no image, has another size than the
  first, or was made of another prompt.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    one = _read(folder)
    return lambda number: one
  files = [folder / _name(number) for number in range(len(prompts))]
  wanted = _read(files[0])
  for file, prompt in zip(files, prompts, strict=True):
    pixels = _read(file)
    if pixels.shape != wanted.shape:
      raise UserError(
        f"config.sample.image: {file} is {pixels.shape[1]} wide and "
        f"{pixels.shape[0]} high, and {files[0].name} {wanted.shape[1]} by "
        f"{wanted.shape[0]}. Images of one run are of one size: scale them "
        "first."
      )
    if _prompt(file) not in ("", prompt):
      raise UserError(
        f"config.sample.image: {file} was made of {_prompt(file)!r}, and the "
        f"image of its number is to be of {prompt!r}. Give the prompts and the "
        "per_prompt of that run."
      )
  return lambda number: _read(files[number])


def _prompt(file: pathlib.Path) -> str:
  """That an album's image says it was made of; '' for another image."""
  with Image.open(file) as image:
    return str(getattr(image, "text", {}).get("prompt", ""))


def _read(file: pathlib.Path) -> np.ndarray:
  try:
    return decode(Encoded(path=str(file)))
  except Refused as error:
    raise UserError(
      f"config.sample.image: {error}. Give an image, or a folder with "
      f"{_name(0)} and so on, one for each image."
    ) from error
