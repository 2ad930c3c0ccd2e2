"""RankDPO on simulated images: lists of four, ranked by how red they are.

  python -m jaxpref.launch --config=configs/rank_dpo_shapes.py \\
    --workdir=runs/rank_dpo_shapes

Karthik et al. 2024 (https://arxiv.org/abs/2410.18013). As many images as in
diffusion_dpo_shapes.py, and as many in a step: eight lists of four instead of
sixteen pairs. The images of a list share their noise, as those of a pair do;
the paper's have each their own (`diffusion.share_noise=False`), of which lists
learned less than pairs here. The model is that of configs/shapes_base.py, or of
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
  config.loss = {"name": "rank_dpo", "beta": 500.0}
  config.diffusion = {"drop_caption": 0.1}
  config.data.batch_size = 8  # lists of four: as many images
  config.optimizer.learning_rate = 1.4e-5  # which strays as far as pairs do
  config.data.eval_holdout = 32
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the lists, and trains the base where none is given; each once."""
  return _base().rank_red(config, workdir)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red")
