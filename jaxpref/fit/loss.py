"""The loss that a config names, and what it asks of data and models."""

from collections.abc import Callable, Sequence
import inspect
import math
from typing import Any

import jax.numpy as jnp

from jaxpref import config, losses
from jaxpref.config import nearest
from jaxpref.errors import UserError

Loss = Callable[..., Any]

NLL_WEIGHT = "nll_weight"
"""The option that losses of pairs share, beside their own.

Weight of the better responses' negative log-likelihood, averaged over their
tokens, which is added to the loss.
"""


DAMP = "damp"
"""The option that losses of pairs with a reference share, beside their own.

How much of the pull on the worse response is left out, from 0 to 1, of pairs
whose two responses have both become less likely than under the reference.
"""


def find_loss(settings: config.Loss) -> Loss:
  """The loss of `config.loss`, its options checked against its signature.

  Raises UserError for an unknown name or option, a missing one, or a loss of
  arrays that training on text does not have.
  """
  try:
    loss = losses.get(settings.name)
  except ValueError as error:
    raise UserError(f"config.loss.name: {error}.") from None
  _check_inputs(settings.name, loss)
  _check_options(settings, loss)
  try:
    loss(*_smallest(loss), **own_options(settings))
  except (ValueError, ArithmeticError) as error:
    raise UserError(
      f"config.loss: {settings.name!r} does not take these values: {error}."
    ) from error
  return loss


def check_suits(settings: config.Config) -> None:
  """Raises UserError for a loss of arrays that the model's data do not give."""
  loss, images = find_loss(settings.loss), settings.model.family == "sdxl"
  known = IMAGES | SAMPLED | NOISED if images else SUPPLIED | REWARDS
  missing = _lacks(loss, known)
  if missing:
    what = "images" if images else "text"
    raise _unsuited(settings.loss.name, missing, what)


def own_options(settings: config.Loss) -> dict[str, Any]:
  """The keyword arguments of the function itself."""
  shared = (NLL_WEIGHT, DAMP)
  return {k: v for k, v in settings.options.items() if k not in shared}


def nll_weight(settings: config.Loss) -> float:
  """The weight of the better responses' NLL: the option, or the paper's."""
  default = losses.spec(losses.get(settings.name)).nll_weight
  return float(settings.options.get(NLL_WEIGHT, default))


def damp(settings: config.Loss) -> float:
  return float(settings.options.get(DAMP, 0.0))


def beta(settings: config.Loss) -> float:
  """What turns a log-ratio into a reward; 1 for a loss without beta."""
  return option(settings, "beta", 1.0)


def option(settings: config.Loss, name: str, otherwise: float) -> float:
  """As given, else the loss's own default, else what it is told here."""
  parameters = inspect.signature(losses.get(settings.name)).parameters
  default = parameters[name].default if name in parameters else otherwise
  return settings.options.get(name, default)


def compares(loss: Loss) -> bool:
  """Whether the loss is one of preference pairs."""
  return losses.spec(loss).unit == "pair" or takes_steps(loss)


def ranks(loss: Loss) -> bool:
  """Whether the loss is one of lists of scored responses."""
  return losses.spec(loss).unit == "list"


def is_online(loss: Loss) -> bool:
  """Whether the loss is one of images that the policy samples in training."""
  return losses.spec(loss).unit == "step" and not takes_steps(loss)


def takes_steps(loss: Loss) -> bool:
  """Whether the loss is one of a sampler's steps to the data's images."""
  return not NOISED.isdisjoint(losses.inputs(loss))


def needs_labels(loss: Loss) -> bool:
  """Whether each response must be known to be desirable or not."""
  return losses.spec(loss).unit == "response"


def needs_mismatched(loss: Loss) -> bool:
  """Whether prompts with answers to other prompts are scored too."""
  return "kl" in losses.inputs(loss)


def trains_rewards(settings: config.Config) -> bool:
  """Whether a reward model trains: a head that rates whole responses.

  The loss says so, or config.model.reward_axes.

  Raises UserError for a loss that takes other than rewards.
  """
  names = losses.inputs(find_loss(settings.loss))
  if not (settings.model.reward_axes or needs_rewards(names)):
    return False
  if other := [name for name in names if name not in REWARDS]:
    raise UserError(
      f"config.model.reward_axes asks for a reward model, and the loss "
      f"{settings.loss.name!r} takes {', '.join(other)} of a model that "
      "writes. Set config.loss.name=bradley_terry, or leave out reward_axes."
    )
  return True


def rated_axes(loss: Loss, rewards: Sequence[str]) -> tuple[str, ...]:
  """The axes of a reward model that trains on the data's scores of that name.

  Those of several rewards, or of one for a loss of scores. One reward of
  other losses has any name, and trains on the data's comparisons or labels.

  Args:
    loss: one that takes rewards.
    rewards: the axes of the model.

  Returns: all of them, or none.

  Raises UserError for several where the loss takes a label that is no score.
  """
  names = losses.inputs(loss)
  if len(rewards) == 1 and not {"score", "present"} & set(names):
    return ()
  if "desirable" in names:
    raise UserError(
      f"config.loss.name: {loss.__name__!r} takes one label a response, which "
      f"says nothing of single axes, and the model has {', '.join(rewards)}. "
      "Name one in config.model.reward_axes; or train on scores, each axis by "
      "itself, by config.loss.name=reward_mse_axes or bradley_terry_axes."
    )
  return tuple(rewards)


def needs_rewards(names: Sequence[str]) -> bool:
  """Whether a loss with these inputs is one of reward models."""
  return any("reward" in name for name in names)


def needs_reference(loss: Loss) -> bool:
  """Whether the loss compares the policy with a reference."""
  names = losses.inputs(loss)
  marks = ("logratio", "ref_", "values")
  return any(mark in each for each in names for mark in marks)


def _check_inputs(name: str, loss: Loss) -> None:
  missing = _lacks(loss, SUPPLIED | REWARDS | IMAGES | SAMPLED | NOISED)
  if missing:
    raise _unsuited(name, missing, "text or images")


def _lacks(loss: Loss, supplied: frozenset[str]) -> list[str]:
  return [each for each in losses.inputs(loss) if each not in supplied]


def _unsuited(name: str, missing: Sequence[str], data: str) -> UserError:
  return UserError(
    f"config.loss.name: {name!r} takes {', '.join(missing)}, which training "
    f"on {data} does not have. Call it from your own code (`from jaxpref "
    "import losses`), or choose another; docs/losses.md has all."
  )


def _check_options(settings: config.Loss, loss: Loss) -> None:
  keywords = {
    name: parameter.default
    for name, parameter in inspect.signature(loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }
  if compares(loss) and not takes_steps(loss):
    keywords[NLL_WEIGHT] = 0.0
    if needs_reference(loss):
      keywords[DAMP] = 0.0
  for name, value in settings.options.items():
    if name not in keywords:
      raise UserError(
        f"config.loss.{name} is not an option of the loss {settings.name!r}. "
        f"{nearest(name, keywords) if keywords else 'It has none.'}"
      )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise UserError(f"config.loss.{name} is {value!r}; it must be a number.")
    # Below zero they would, in silence, train for the worse.
    if value < 0 and (name == "beta" or name.endswith("weight")):
      raise UserError(f"config.loss.{name} is {value}; it must be at least 0.")
    if name == DAMP and not 0.0 <= value <= 1.0:
      raise UserError(
        f"config.loss.damp is {value}; it must be from 0, which leaves the "
        "loss as it is, to 1."
      )
    if not abs(value) < math.inf:
      raise UserError(f"config.loss.{name} is {value}; it must be finite.")
  for name, default in keywords.items():
    if default is inspect.Parameter.empty and name not in settings.options:
      raise UserError(
        f"The loss {settings.name!r} needs config.loss.{name}, a number."
      )


def _smallest(loss: Loss) -> list[Any]:
  """Arrays of one unit, on which the loss tries its options."""
  parameters = inspect.signature(loss).parameters
  arrays = []
  for name in losses.inputs(loss):
    kind = parameters[name].annotation
    shape = (1,) * len(kind.dim_str.split())
    arrays.append(jnp.ones(shape, bool if "bool" in kind.dtypes else float))
  return arrays


_PAIR = ("logratio", "mean_logratio", "logp", "mean_logp")
SUPPLIED = frozenset(
  {"token_logp", "ref_token_logp", "logratio", "logp", "mean_logratio",
   "mean_logp", "desirable", "kl", "valid", "preference", "values", "scores"}
  | {f"{side}_{what}" for side in ("chosen", "rejected") for what in _PAIR}
)  # fmt: skip
"""What `views.Views` computes of text."""

REWARDS = frozenset(
  {"chosen_reward", "rejected_reward", "reward", "preference", "desirable",
   "score", "present"}
)  # fmt: skip
"""What `reward.RewardViews` and `axes.AxisViews` compute of it."""

_OF_IMAGES = ("error", "score", "logp", "mean_logp", "logratio",
              "mean_logratio")  # fmt: skip
IMAGES = frozenset(
  {*_OF_IMAGES, "desirable", "valid", "preference", "values", "scores"}
  | {f"{side}_{what}" for side in ("chosen", "rejected") for what in _OF_IMAGES}
)
"""What `image_objective.ImageViews` computes of images."""

SAMPLED = frozenset({"chosen_step_logratio", "rejected_step_logratio"})
"""What `online_objective` computes of images that the policy samples."""

NOISED = frozenset(
  f"{side}_noised_{what}"
  for side in ("chosen", "rejected")
  for what in ("logratio", "gain")
)
"""What `offline_objective` computes of the data's images, for each step."""
