"""What the training log says of the use of the devices."""

import numpy as np
import pytest

from jaxpref.data.steps import Steps
from jaxpref.fit.flops import Speed


def test_rates_of_a_known_and_of_an_unknown_device():
  name = "useful_tflops_per_second_per_device"
  speed = Speed(lambda step: 0.0, 4, "NVIDIA H200")
  rates = speed.rates(flops=8e15, seconds=5.0)
  assert rates == pytest.approx({name: 400.0, "mfu": 400 / 989})
  assert Speed(lambda step: 0.0, 1, "cpu").rates(2e12, 1.0) == {name: 2.0}


def test_lengths_are_those_of_what_a_step_keeps(make_prepared):
  examples = [([1] * (n + 1), [[2] * 3, [3] * 5], [(1, 0)]) for n in range(4)]
  data = make_prepared(examples)
  make = lambda **given: Steps(
    data, batch_size=3, rows=2, row_length=32, **given
  )
  assert make().lengths(0) == [(1, (3, 5)), (2, (3, 5)), (3, (3, 5))]
  assert make().lengths(1) == [(4, (3, 5))]
  assert make(kept=data.imitated).lengths(1) == [(4, (5,))]
  shuffled = make(shuffle=True, seed=3)
  order = np.concatenate([shuffled.examples(step) for step in (0, 1)])
  found = [
    prompt - 1 for step in (0, 1) for prompt, _ in shuffled.lengths(step)
  ]
  assert found == order.tolist()
