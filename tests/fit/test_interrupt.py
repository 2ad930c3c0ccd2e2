import os
import signal

import jax
from jax.experimental import multihost_utils
import pytest

from jaxpref.fit.interrupt import Interrupt


@pytest.fixture
def outer():
  """Signals that came through to the handler of before."""
  caught = []
  before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
  yield caught
  signal.signal(signal.SIGTERM, before)


def test_sigterm_is_noted_while_entered(outer):
  with Interrupt() as interrupt:
    assert not interrupt.requested(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert interrupt.requested(2)
    assert interrupt.requested(3)  # once and for all
  assert not outer


def test_what_was_before_comes_back(outer):
  with Interrupt():
    pass
  os.kill(os.getpid(), signal.SIGTERM)
  assert outer == [1]


def test_each_begins_anew(outer):
  with Interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
  with Interrupt() as interrupt:
    assert not interrupt.requested(1)


def test_several_processes_agree(outer, monkeypatch):
  asked = []
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost_utils,
    "reached_preemption_sync_point",
    lambda step: asked.append(step) or step == 7,
  )
  with Interrupt() as interrupt:
    assert not interrupt.requested(6)
    assert interrupt.requested(7)
    # JAX's own handler takes the signal: this one must not stand before it.
    os.kill(os.getpid(), signal.SIGTERM)
  assert outer == [1]
  assert asked == [6, 7]
