"""`python -m jaxpref.data.inspect PATH [--tokenizer=DIR] [--html=FILE]`.

Texts need a tokenizer, images none.

Exit status: 0 done; 2 a mistake of the user's, told in one paragraph.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from jaxpref import config
from jaxpref.data import formats, tokenizer
from jaxpref.data.inspect import images, page, screen
from jaxpref.data.inspect.measure import measure
from jaxpref.errors import UserError, paragraph


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  flags = _parse(sys.argv[1:] if argv is None else argv)
  try:
    data = config.Data(format=flags.format, max_length=flags.max_length)
    formats.check_format(data.format)
    html = _html(flags.html)
    pictured = images.first_is_image(flags.path, data.format)
    # Where no row can be read, why is told with or without a tokenizer.
    if pictured or (pictured is None and not flags.tokenizer):
      shown = _images(flags, data, html)
    else:
      shown = _texts(flags, data, html)
  except UserError as error:
    print(paragraph(str(error)), file=sys.stderr)
    return 2
  # A lone surrogate, which JSON can hold, has no UTF-8.
  print(shown.encode(errors="replace").decode())
  if html:
    print(f"\nPage: {html}")
  return 0


def _texts(
  flags: argparse.Namespace, data: config.Data, html: pathlib.Path | None
) -> str:
  if not flags.tokenizer:
    raise UserError(
      f"{flags.path} holds texts, which are measured in tokens: name a folder "
      "with a tokenizer by --tokenizer=DIR."
    )
  rules = tokenizer.Rules(tokenizer.load(flags.tokenizer))
  found = measure(flags.path, rules, data, flags.examples)
  if html:
    page.write_page(html, found, rules.tokenizer, flags.path, data.max_length)
  color = sys.stdout.isatty() if flags.color == "auto" else flags.color == "yes"
  return screen.text(found, rules.tokenizer, data.max_length, color)


def _images(
  flags: argparse.Namespace, data: config.Data, html: pathlib.Path | None
) -> str:
  found = images.measure(flags.path, data, flags.examples)
  if html:
    page.write_image_page(html, found, flags.path)
  return screen.tables(found, images.sections(found))


def _html(path: str) -> pathlib.Path | None:
  html = pathlib.Path(path).expanduser()
  if path and not html.parent.is_dir():
    raise UserError(f"--html={path}: there is no folder {html.parent}.")
  return html if path else None


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m jaxpref.data.inspect",
    allow_abbrev=False,
    description="Says what is in preference data: counts, lengths, ties, "
    "duplicates, length bias, label noise, how texts become tokens, and which "
    "images cannot be decoded.",
  )
  parser.add_argument("path", help="a file, a folder, a pattern or a URL")
  parser.add_argument(
    "--tokenizer", default="", help="a folder with one, for texts"
  )
  parser.add_argument("--format", default="auto", help="as config.data.format")
  parser.add_argument(
    "--max_length",
    type=int,
    default=config.Data.max_length,
    help="tokens of one prompt plus one response, as config.data.max_length",
  )
  parser.add_argument(
    "--examples", type=int, default=3, help="how many are shown"
  )
  parser.add_argument("--color", choices=("auto", "yes", "no"), default="auto")
  parser.add_argument("--html", default="", help="a page to write")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
