"""PSO on simulated images: a 4-step sampler's images become redder.

  python -m jaxpref.launch --config=configs/pso_shapes.py \\
    --workdir=runs/pso_shapes

Miao et al. 2024 (https://arxiv.org/abs/2410.03190), online: the model draws two
images of each caption in four steps, and the redder one is preferred. The
images of the data are not looked at. The model is the student of
configs/shapes_student.py, or the few-step model of config.model.path.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from jaxpref import config as settings
from jaxpref.files import import_file


def get_config() -> ml_collections.ConfigDict:
  config = _sibling("shapes_base", "get_recipe").get_recipe()
  config.loss = {"name": "pso", "beta": 50.0, "clip": 0.1}
  config.data.rows_per_device = 16  # each a caption, of which two are drawn
  config.sample.steps = 4
  config.train.steps = 100
  return config


def make_inputs(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """Writes the captions, and makes the student where no model is given."""
  model = config.model.path
  if not model:
    student = _sibling("shapes_student", "find_student")
    found = student.find_student(config, workdir)
    if found is None:
      return None
    model = str(found)
  given = dataclasses.replace(config.model, path=model)
  base = _sibling("shapes_base", "prefer_red")
  return base.prefer_red(dataclasses.replace(config, model=given), workdir)


def _sibling(name: str, needs: str) -> Any:
  path = str(pathlib.Path(__file__).with_name(f"{name}.py"))
  return import_file(path, path, needs)
