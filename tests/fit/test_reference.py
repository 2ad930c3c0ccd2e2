"""Which reference a run has."""

import pytest

from jaxpref import config
from jaxpref.data.steps import Steps
from jaxpref.errors import UserError
from jaxpref.fit.reference import check_mode, with_mode


def _steps(data):
  return Steps(data, batch_size=5, rows=2, row_length=64)


def _settings(loss, mode, fill="before"):
  options = {} if loss == "sft" else {"beta": 0.1}
  return config.build(
    {
      "loss": {"name": loss, **options},
      "reference": {"mode": mode, "fill": fill},
    }
  )


@pytest.mark.parametrize("mode", ["live", "cached"])
def test_a_mode_that_is_said_is_kept(mode):
  kept = with_mode(_settings("dpo", mode), True)
  assert kept == _settings("dpo", mode)
  none = with_mode(_settings("sft", mode), True)
  assert none == _settings("sft", "none")


def test_auto_caches_what_is_seen_at_least_once(data):
  for num_steps, mode in ((2, "live"), (3, "cached"), (30, "cached")):
    steps = Steps(
      data, batch_size=5, rows=2, row_length=64, num_steps=num_steps
    )
    chosen = with_mode(_settings("dpo", "auto"), steps.see_all)
    assert chosen.reference.mode == mode


def test_a_loss_that_needs_a_reference():
  with pytest.raises(UserError, match="'none', and the loss 'ipo'"):
    check_mode(_settings("ipo", "none"))
  check_mode(_settings("ipo", "auto"))
  check_mode(_settings("sft", "none"))


@pytest.mark.parametrize("mode", ["live", "base", "none"])
def test_only_a_cache_can_be_filled(mode):
  settings = _settings("sft" if mode == "none" else "dpo", mode, "during")
  if mode != "base":  # which needs an adapter first of all
    with pytest.raises(UserError, match=f"mode is '{mode}', which caches none"):
      check_mode(settings)
  check_mode(_settings("dpo", "auto", "during"))


def test_auto_fills_a_cache_however_short_the_run(data):
  steps = Steps(data, batch_size=5, rows=2, row_length=64, num_steps=1)
  chosen = with_mode(_settings("dpo", "auto", "during"), steps.see_all)
  assert chosen.reference.mode == "cached"
