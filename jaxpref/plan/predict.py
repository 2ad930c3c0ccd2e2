"""How long a step may take, by a roofline; and which knob makes it smaller."""

from typing import NamedTuple

from jaxpref import chips, config
from jaxpref.plan.job import Measured


class Prediction(NamedTuple):
  """Seconds of a step if each part ran at the chip's peak, by itself."""

  arithmetic: float
  memory: float
  links: float

  @property
  def least(self) -> float:
    """If all three overlap."""
    return max(self)

  @property
  def most(self) -> float:
    """If none does."""
    return sum(self)


def predict(measured: Measured) -> Prediction | None:
  """None for a chip that is not known, and for a step that was not compiled."""
  chip = chips.find_chip(measured.device_kind)
  if chip is None or not measured.traffic:
    return None
  sent = sum(each.bytes for each in measured.collectives.values())
  return Prediction(
    measured.computed / measured.chips / chip.peak_flops,
    measured.traffic / chip.memory_bandwidth,
    sent / chip.link_bandwidth,
  )


def what_to_turn(settings: config.Config, measured: Measured) -> list[str]:
  """Settings that make a step smaller, those that cost least first."""
  memory, model, data = measured.memory, settings.model, settings.data
  state = memory.parameters + memory.optimizer
  passing = []
  if model.remat != "nothing_saveable":
    passing.append("config.model.remat=nothing_saveable keeps the least")
  if data.rows_per_device > 1:
    fewer = data.rows_per_device // 2
    passing.append(
      f"config.data.rows_per_device={fewer} halves what a micro-batch takes; "
      "the step is cut into more of them"
    )
  else:
    passing.append(
      "a lower config.data.row_length (and config.data.max_length) makes rows "
      "shorter"
    )
  if settings.mesh.tensor == 1:
    passing.append("config.mesh.tensor=2 cuts each layer's work in two")
  staying = []
  if settings.mesh.data != 1:
    staying.append(
      "config.mesh.data=1 and config.mesh.fsdp=-1 spread parameters and "
      "optimizer over all chips"
    )
  if settings.reference.mode in ("auto", "live"):
    staying.append(
      "config.reference.mode=cached needs no second model beside the first"
    )
  if not model.adapts:
    staying.append(
      "config.model.lora.rank=16 trains an adapter, without optimizer state "
      "for the weights (then config.model.param_dtype=bfloat16 halves them, "
      "and int8 once more)"
    )
  staying.append("more chips share what stays")
  return staying + passing if 2 * state > memory.total else passing + staying
