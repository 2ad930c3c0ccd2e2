"""Offline PSO on simulated images: a 4-step sampler's images become redder.

  python -m jaxpref.launch --config=configs/pso_offline_shapes.py \\
    --workdir=runs/pso_offline_shapes

Miao et al. 2024 (https://arxiv.org/abs/2410.03190), as configs/pso_shapes.py,
whose student, data and samples these are; but the model learns from the pairs
of the data, of which the redder image is preferred, and draws none.
"""

import pathlib
from typing import Any

import ml_collections

from jaxpref import config as settings
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _online().get_config()
  config.loss = {"name": "pso_offline", "beta": 50.0, "clip": 0.1}
  config.data.rows_per_device = 32  # both images of sixteen pairs
  return config


def make_inputs(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """Draws the pairs, and makes the student where no model is given."""
  return _online().make_inputs(config, workdir)


def _online() -> Any:
  path = str(pathlib.Path(__file__).with_name("pso_shapes.py"))
  return import_file(path, path, "make_inputs")
