"""Writes losses.json: pairwise losses and their gradients in torch, float64.

  python tests/golden/make_losses.py

The formulas are those of TRL's DPOTrainer (1.16; label smoothing of 0.19,
since 1.16 ignores it): `sigmoid` from summed log-ratios, `ipo` from sums that
it divides by the number of response tokens.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

NAMES = ("chosen", "rejected")


def main() -> None:
  generator = torch.Generator().manual_seed(0)
  sums = 3.0 * torch.randn(2, 12, generator=generator, dtype=torch.float64)
  lengths = torch.randint(1, 30, (2, 12), generator=generator)
  cases = [
    _case("dpo", _sigmoid, sums, beta=beta, label_smoothing=smoothing)
    for beta in (0.1, 0.5)
    for smoothing in (0.0, 0.1)
  ]
  cases += [
    _case("ipo", _ipo, sums / lengths, beta=beta) for beta in (0.1, 0.5)
  ]
  path = pathlib.Path(__file__).with_name("losses.json")
  path.write_text("[" + ",\n".join(map(json.dumps, cases)) + "]\n")


def _sigmoid(delta, beta, label_smoothing):
  as_labelled, backwards = F.softplus(-beta * delta), F.softplus(beta * delta)
  return (1 - label_smoothing) * as_labelled + label_smoothing * backwards


def _ipo(delta, beta):
  return (delta - 1 / (2 * beta)) ** 2


def _case(name, loss, inputs, **options):
  """A loss of what its float32 callers will pass, and d sum(loss) / d input."""
  inputs = inputs.float().double().requires_grad_()
  losses = loss(inputs[0] - inputs[1], **options)
  losses.sum().backward()
  return {
    "name": name,
    "options": options,
    "inputs": dict(zip(NAMES, inputs.tolist(), strict=True)),
    "loss": losses.tolist(),
    "grads": dict(zip(NAMES, inputs.grad.tolist(), strict=True)),
  }


if __name__ == "__main__":
  main()
