"""SmPO on simulated images: pairs as sure as their redness differs.

  python -m jaxpref.launch --config=configs/smpo_shapes.py \\
    --workdir=runs/smpo_shapes

Lu et al. 2025 (https://arxiv.org/abs/2506.02698): the pairs and the steps of
diffusion_dpo_shapes.py, with the noise that the model itself makes of each
image in five steps. The model is that of configs/shapes_base.py, or of
config.model.path.

docs/certificates.md tells what three seeds came to, beside Diffusion-DPO.
"""

import pathlib
from typing import Any

import ml_collections

from jaxpref.config import Config
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _base().get_recipe()
  # The range of redness over the images: half of the pairs pull at most 0.65
  # times as hard as in Diffusion-DPO, a tenth 1.75 times and more.
  config.loss = {"name": "smpo", "beta": 500.0, "score_range": 0.414}
  config.diffusion = {"drop_caption": 0.1, "inversion_steps": 5}
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the pairs, and trains the base where none is given; each once."""
  return _base().prefer_red(config, workdir)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red")
