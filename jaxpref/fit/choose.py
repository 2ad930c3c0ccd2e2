"""The objective that a config asks for."""

from jaxpref import config
from jaxpref.fit.loss import trains_rewards
from jaxpref.fit.objectives import Objective, text_objective
from jaxpref.fit.reward import reward_objective
from jaxpref.models.build import Definition


def find_objective(
  definition: Definition, settings: config.Config, *, training: bool = False
) -> Objective:
  """Of a reward model or of one that writes, by `config.loss`.

  Args:
    definition: the model.
    settings: the config.
    training: whether an adapter drops inputs.

  Raises UserError for a loss that the model does not suit.
  """
  if trains_rewards(settings):
    return reward_objective(definition, settings.loss, training=training)
  return text_objective(
    definition,
    settings.loss,
    head_block=settings.model.head_block,
    training=training,
  )
