"""MaPO on simulated images: as diffusion_dpo_shapes.py, without a reference.

  python -m jaxpref.launch --config=configs/mapo_shapes.py \\
    --workdir=runs/mapo_shapes

Hong, Paul et al. 2024 (https://arxiv.org/abs/2406.06424) in the form of their
code. The model is that of configs/shapes_base.py, or of config.model.path.
"""

import pathlib

import ml_collections

from jaxpref.config import Config
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl", "remat": ""}
  config.loss = {"name": "mapo"}
  config.data = {"batch_size": 16, "rows_per_device": 32, "eval_holdout": 64}
  config.optimizer = {
    "learning_rate": 2e-5,
    "schedule": "linear",
    "warmup_steps": 10,
  }
  config.train = {"steps": 200}
  config.sample = {
    "num_prompts": 6,
    "per_prompt": 16,
    "steps": 20,
    "guidance": 1.0,
  }
  config.score = {"rater": "red"}
  return config


def make_inputs(config: Config, workdir: pathlib.Path) -> Config | None:
  """Draws the pairs, and trains the base where none is given; each once."""
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "prefer_red").prefer_red(config, workdir)
