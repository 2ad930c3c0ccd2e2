"""Diffusion-DPO on simulated images: samples become redder, in minutes.

  python -m jaxpref.launch --config=configs/diffusion_dpo_shapes.py \\
    --workdir=runs/dpo_shapes

A thousand pairs of images of one caption, of which the redder is preferred
(Wallace et al. 2023, https://arxiv.org/abs/2311.12908). The model is that of
configs/shapes_base.py, or of config.model.path.

docs/certificates.md tells what three seeds came to. At ten times this learning
rate and a beta of 200 as many samples are redder, and the images are lost: look
at samples/step_000200/contact_sheet.png.

A beta of 500 for means over 256 elements of a latent is one of 2 for sums; the
authors' 5000 for the 16,384 elements of 512 pixels is one of 0.3.
"""

import pathlib
from typing import Any

import ml_collections

from jaxpref.config import Config
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _base().get_recipe()
  config.loss = {"name": "dpo", "beta": 500.0}
  config.diffusion = {"drop_caption": 0.1}
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the pairs, and trains the base where none is given; each once."""
  return _base().prefer_red(config, workdir)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red")
