"""Errors that are the user's to mend, and how a command tells of them."""

import textwrap


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
