"""The examples of a run: read, paired, held out, and fit for the loss."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from jaxpref import config, pair
from jaxpref.data.curriculum import LogProbs, take_stage
from jaxpref.data.joined import join
from jaxpref.data.mixture import make_order
from jaxpref.data.order import Order
from jaxpref.data.prepared import Prepared, split_holdout
from jaxpref.errors import UserError
from jaxpref.fit.loss import (
  compares,
  find_loss,
  is_online,
  needs_mismatched,
)
from jaxpref.fit.usable import usable_examples
from jaxpref.hosts import say
from jaxpref.sample import prompts

_KINDS = (
  "a file of comparisons (.jsonl, .jsonl.gz, .jsonl.zst, .csv, .parquet, "
  ".arrow or .array_record), or a folder of such files; or several in "
  "config.data.sources"
)


def read_examples(
  settings: config.Config,
  prepare: Callable[[config.Data, str], Any],
  axes: Sequence[str] = (),
  log_probs: LogProbs | None = None,
) -> tuple[Any, Any]:
  """What to train and to evaluate on, with the comparisons that are asked for.

  Args:
    settings: data, pair and loss are read.
    prepare: the prepared data of a path, by the settings of `data`.
    axes: of a reward model whose labels are the data's scores.
    log_probs: see `curriculum.difficulty`.

  Returns: both, as `prepare` gives them; None where nothing is held out.

  Raises UserError for data that the loss cannot use.
  """
  data = settings.data
  if not (data.path or data.sources):
    kinds = prompts.KINDS if is_online(find_loss(settings.loss)) else _KINDS
    raise UserError(f"config.data.path is empty. Give {kinds}.")
  if data.eval_path and data.eval_holdout:
    raise UserError(
      "config.data.eval_path and config.data.eval_holdout are both set; use "
      "one of them."
    )

  if data.curriculum.criterion and not compares(find_loss(settings.loss)):
    raise UserError(
      "config.data.curriculum orders comparisons, and the loss "
      f"{settings.loss.name!r} makes none. Choose a loss of pairs."
    )

  def read(path: str, format: str) -> Prepared:
    found = prepare(dataclasses.replace(data, format=format), path)
    say(found.summary())
    found, told = pair.with_pairs(found, settings.pair, axes)
    if told:
      say(told)
    if data.curriculum.criterion:
      found = found.by_comparison()
    found, told = usable_examples(found, path, find_loss(settings.loss))
    if told:
      say(told)
    return found

  def read_source(name: str) -> Prepared:
    say(f"Source {name}:")
    try:
      return read(data.sources[name].path, data.sources[name].format)
    except UserError as error:
      raise UserError(f"config.data.sources.{name}: {error}") from error

  if data.sources:
    train: Prepared = join({name: read_source(name) for name in data.sources})
  else:
    train = read(data.path, data.format)
  test = read(data.eval_path, data.format) if data.eval_path else None
  if data.eval_holdout:
    train, test = split_holdout(train, data.eval_holdout, data.seed)
  if axes:
    pair.check_axes(train, axes, compared=compares(find_loss(settings.loss)))
  if data.curriculum.stages > 1:
    train, told = take_stage(train, data.curriculum, log_probs)
    say(told)
  if needs_mismatched(find_loss(settings.loss)):
    sizes = data.batch_size, data.max_length
    train = train.with_mismatched(*sizes)
    test = test and test.with_mismatched(*sizes)
  return train, test


def order_examples(
  settings: config.Config, train: Prepared, log_probs: LogProbs | None = None
) -> tuple[Order, int]:
  """The order of the examples of an epoch, and how many steps the run has."""
  data = settings.data
  order, told = make_order(data, train, log_probs)
  if told:
    say(told)
  epoch = order.num_batches(data.batch_size)
  return order, settings.train.steps or epoch * data.epochs
