"""Errors that are the user's to mend, and how a command tells of them."""

import difflib
import textwrap
from typing import Any


class UserError(Exception):
  """A mistake in the config, the data or a checkpoint.

  The message is one paragraph: what was given, what is allowed, what to do.
  `python -m jaxpref.launch` prints it without a traceback and exits with 2.
  """


def paragraph(text: str) -> str:
  """A message as commands print it."""
  # Names of files stay whole, for those who copy them.
  return textwrap.fill(
    text,
    100,
    initial_indent="jaxpref: ",
    break_long_words=False,
    break_on_hyphens=False,
  )


def nearest(name: str, known: Any) -> str:
  """' Did you mean X?', or the list of what is known."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  if close:
    return f"Did you mean {close[0]!r}?"
  return f"Known: {', '.join(sorted(known))}."
