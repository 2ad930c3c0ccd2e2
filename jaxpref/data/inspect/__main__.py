"""`python -m jaxpref.data.inspect PATH --tokenizer=DIR [--html=FILE]`.

Exit status: 0 done; 2 a mistake of the user's, told in one paragraph.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from jaxpref import config
from jaxpref.data import formats, tokenizer
from jaxpref.data.inspect import page, screen
from jaxpref.data.inspect.measure import measure
from jaxpref.errors import UserError, paragraph


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  flags = _parse(sys.argv[1:] if argv is None else argv)
  try:
    data = config.Data(format=flags.format, max_length=flags.max_length)
    formats.check_format(data.format)
    rules = tokenizer.Rules(tokenizer.load(flags.tokenizer))
    found = measure(flags.path, rules, data, flags.examples)
    if flags.html:
      html = pathlib.Path(flags.html).expanduser()
      if not html.parent.is_dir():
        raise UserError(
          f"--html={flags.html}: there is no folder {html.parent}."
        )
  except UserError as error:
    print(paragraph(str(error)), file=sys.stderr)
    return 2
  color = sys.stdout.isatty() if flags.color == "auto" else flags.color == "yes"
  shown = screen.text(found, rules.tokenizer, data.max_length, color)
  # A lone surrogate, which JSON can hold, has no UTF-8.
  print(shown.encode(errors="replace").decode())
  if flags.html:
    page.write_page(html, found, rules.tokenizer, flags.path, data.max_length)
    print(f"\nPage: {html}")
  return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m jaxpref.data.inspect",
    allow_abbrev=False,
    description="Says what is in preference data: counts, lengths, ties, "
    "duplicates, length bias, label noise, and how texts become tokens.",
  )
  parser.add_argument("path", help="a file, a folder, a pattern or a URL")
  parser.add_argument(
    "--tokenizer", required=True, help="a folder with a tokenizer"
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
