"""MaPO on simulated images: as diffusion_dpo_shapes.py, without a reference.

  python -m jaxpref.launch --config=configs/mapo_shapes.py \\
    --workdir=runs/mapo_shapes

Hong, Paul et al. 2024 (https://arxiv.org/abs/2406.06424) in the form of their
code. The model is that of configs/shapes_base.py, or of config.model.path.
"""

import pathlib
from typing import Any

import ml_collections

from jaxpref.config import Config
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _base().get_recipe()
  config.loss = {"name": "mapo"}
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the pairs, and trains the base where none is given; each once."""
  return _base().prefer_red(config, workdir)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red")
