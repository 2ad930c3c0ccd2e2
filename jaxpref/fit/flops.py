"""How much of the devices a step makes use of."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxpref import chips, config
from jaxpref.models.build import Definition
from jaxpref.models.llama.flops import Tree, forward_flops


def step_flops(
  settings: config.Config, definition: Definition, trees: Iterable[Tree]
) -> float:
  """Useful floating-point operations of a step over these trees.

  With forward cost F, training all weights takes 3 F: a backward pass twice
  as much as the forward one. Below an adapter no weight needs a gradient, so
  that its backward pass costs the linear layers once. A reference that is
  computed as it goes adds its own F, one that is cached nothing. `settings`
  have the mode that `reference.with_mode` found, and `trees` no virtual tokens.
  """
  trees = list(trees)
  one = forward_flops(definition, trees)
  if definition.base:
    policy = 2.0 * one.linear + 3.0 * (one.attention + one.adapter)
  else:
    policy = 3.0 * (one.linear + one.attention)
  return policy + _reference(settings, definition, trees)


def _reference(
  settings: config.Config, definition: Definition, trees: Iterable[Tree]
) -> float:
  mode, given = settings.reference.mode, settings.model.adapter_path
  if mode not in ("live", "base"):
    return 0.0
  shares = mode == "live" and given and not settings.reference.path
  whole = definition if shares else definition.base or definition
  return sum(forward_flops(whole, trees))


class Speed(NamedTuple):
  """What turns seconds into the use that they make of the devices."""

  flops: Callable[[int], float]  # useful operations of the step of a number
  devices: int
  device_kind: str

  def rates(self, flops: float, seconds: float) -> dict[str, float]:
    """TFLOP/s of each device; where its peak is known, the share of it too."""
    each = flops / seconds / self.devices
    rates = {"useful_tflops_per_second_per_device": each / 1e12}
    if chip := chips.find_chip(self.device_kind):
      rates["mfu"] = each / chip.peak_flops
    return rates
