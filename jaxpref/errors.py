"""Errors that are the user's to mend."""


class UserError(Exception):
  """A mistake in the config, the data or a checkpoint.

  The message is one paragraph: what was given, what is allowed, what to do.
  `python -m jaxpref.launch` prints it without a traceback and exits with 2.
  """
