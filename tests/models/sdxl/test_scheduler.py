"""scheduler_config.json: what is read, and what is refused."""

import json

import diffusers
import numpy as np
import pytest

from jaxpref.errors import UserError
from jaxpref.models.sdxl.scheduler import (
  Scheduler,
  read_scheduler,
  scheduler_from,
)

# Of diffusers, which makes NumPy arrays of torch's.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

# What the folder of SDXL base holds.
SDXL = {
  "_class_name": "EulerDiscreteScheduler",
  "_diffusers_version": "0.19.0.dev0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "interpolation_type": "linear",
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "sample_max_value": 1.0,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "timestep_spacing": "leading",
  "trained_betas": None,
  "use_karras_sigmas": False,
}


def write(folder, text):
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(text)
  return folder


def test_sdxls_is_the_default(tmp_path):
  assert read_scheduler(write(tmp_path, json.dumps(SDXL))) == Scheduler()


@pytest.mark.parametrize(
  "name",
  [
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
  ],
)
@pytest.mark.parametrize("schedule", ["", "squaredcos_cap_v2"])
def test_what_a_file_leaves_out_is_as_in_diffusers(name, schedule):
  given = {"beta_schedule": schedule} if schedule else {}
  theirs = getattr(diffusers, name)(**given)
  ours = scheduler_from({"_class_name": name, **given}, source="test")
  np.testing.assert_allclose(
    ours.alpha_bar(),
    theirs.alphas_cumprod,
    rtol=1e-4,  # a product of a thousand float32
    atol=1e-7,
  )
  for key in ("timestep_spacing", "steps_offset", "prediction_type"):
    if key in theirs.config:
      assert getattr(ours, key) == theirs.config[key]


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ({"clip_sample": True}, "clip_sample is True"),
    ({"trained_betas": [0.1]}, "trained_betas"),
    ({"prediction_type": "noise"}, "'v_prediction'"),
    ({"use_beta_sigmas": True}, "use_beta_sigmas"),
  ],
)
def test_what_is_not_supported_is_named(changed, words):
  with pytest.raises(UserError, match=words):
    scheduler_from({**SDXL, **changed}, source="test")


def test_not_a_diffusers_folder(tmp_path):
  with pytest.raises(UserError, match="a folder that diffusers saved"):
    read_scheduler(tmp_path)
  with pytest.raises(UserError, match="is not JSON"):
    read_scheduler(write(tmp_path, "{"))
