"""PSO on simulated images: 4-step samples become redder.

  python -m jaxpref.launch --config=configs/pso_shapes.py \\
    --workdir=runs/pso_shapes
"""

import pathlib
from typing import Any

import ml_collections

from jaxpref.config import Config
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _base().get_recipe()
  config.loss = {"name": "pso", "beta": 50.0, "clip": 0.1}
  config.data.rows_per_device = 16
  config.sample.update({"sampler": "lcm", "steps": 4})
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the pairs, and trains the base where none is given; each once."""
  return _base().prefer_red(config, workdir)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red")
