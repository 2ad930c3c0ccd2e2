"""Which of the data a loss can use."""

import numpy as np

from jaxpref.data.prepared import Prepared
from jaxpref.errors import UserError
from jaxpref.fit.loss import Loss, compares, is_online, needs_labels, ranks


def usable_examples(
  data: Prepared, path: str, loss: Loss
) -> tuple[Prepared, str]:
  """The examples that the loss can use, and what to say of it.

  Args:
    data: all examples.
    path: what to call them.
    loss: the loss.

  Raises UserError where there is none.
  """
  if is_online(loss):
    return data, ""  # a caption is all that it takes
  told = []
  first = data.first_response[:-1]
  rated = np.isfinite(data.ratings).any(axis=1)
  by_axis = data.ratings.shape[1] > 0
  if compares(loss) and by_axis:
    usable = np.diff(data.first_comparison) > 0
    what = "comparison on an axis of the reward"
    advice = (
      "This loss needs prompts with two responses that are rated on the same "
      "axis, and not the same; config.pair.ties=keep takes ties too."
    )
  elif compares(loss):
    usable = np.diff(data.first_comparison) > 0
    what = "comparison"
    advice = (
      "This loss needs rows with `chosen` and `rejected`; labelled answers "
      "train with config.loss.name=kto, and answers alone with sft."
    )
  elif ranks(loss):
    usable = np.add.reduceat(np.isfinite(data.score), first) > 1
    what = "list of scored answers"
    advice = (
      "This loss needs rows with several scored or ranked responses, or with "
      "`chosen` and `rejected`; answers alone train with config.loss.name=sft."
    )
  elif by_axis:
    usable = np.logical_or.reduceat(rated, first)
    what = "response rated on an axis of the reward"
    advice = "Name other scores in config.model.reward_axes."
  elif needs_labels(loss):
    usable = np.logical_or.reduceat(data.label >= 0, first)
    what = "label"
    advice = (
      "This loss needs rows with `completion` and `label`, or with `chosen` "
      "and `rejected`; answers alone train with config.loss.name=sft."
    )
  else:
    usable = np.logical_or.reduceat(data.imitated, first)
    what = "answer to imitate"
    advice = "All are labelled undesirable; config.loss.name=kto uses those."
  if not usable.any():
    raise UserError(f"{path} holds no {what}. {advice}")
  if not usable.all():
    count = len(data) - np.count_nonzero(usable)
    told.append(f"{count:,} examples without {what} left out.")
    data = data.select(np.flatnonzero(usable))
  if needs_labels(loss) and not by_axis:
    bad, good = (np.count_nonzero(data.label == kind) for kind in (0, 1))
    told.append(f"{good:,} desirable and {bad:,} undesirable responses.")
  return data, "\n".join(told)


def kept_responses(data: Prepared, loss: Loss) -> np.ndarray:
  """Which responses the loss looks at; the others are not computed.

  A loss of sampled images has one a prompt, for those to come.
  """
  if is_online(loss):
    return np.ones(len(data.response_lengths), bool)
  if compares(loss):
    return data.compared
  if ranks(loss):
    return np.isfinite(data.score)
  if data.ratings.shape[1]:
    return np.isfinite(data.ratings).any(axis=1)
  if needs_labels(loss):
    return (data.label >= 0) | data.mismatched
  return data.imitated
