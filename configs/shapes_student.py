"""A student of simulated images that samples in 4 steps what takes 20.

  python -m jaxpref.launch --config=configs/shapes_student.py \\
    --workdir=runs/shapes_student

The teacher is the model of configs/shapes_base.py, or of config.model.path. It
makes 2,048 images by 20 deterministic steps; the student, which begins as a
copy, learns to say at the first, sixth, eleventh and sixteenth of them where
the teacher ends (jaxpref/fit/distill.py). The folder names Euler ancestral
and timesteps from the last one down, as that of SDXL-Turbo does.

The run folder then has samples of the student. configs/pso_shapes.py trains it
on preferences. Where no teacher is given, it is made once, below
$JAXPREF_CACHE.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

import ml_collections

from jaxpref import config as settings
from jaxpref.data import shapes
from jaxpref.files import import_file
from jaxpref.fit.distill import distill
from jaxpref.hosts import say
from jaxpref.models.export import write_json
from jaxpref.models.sdxl.image_model import open_image_model
from jaxpref.models.sdxl.pipeline import StoredParts, save_pipeline
from jaxpref.models.sdxl.scheduler import scheduler_from
from jaxpref.models.source import folder_digest
from jaxpref.sample.samplers import make_sampler

STEPS = 4
EDITION = 1  # of what a student depends on beside its teacher


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl", "remat": ""}
  config.sample = {"per_prompt": 16, "steps": STEPS, "guidance": 1.0}
  config.stages = ("sample",)
  return config


def make_inputs(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """Makes the student, once. Returns None if interrupted."""
  folder = find_student(config, workdir)
  if folder is None:
    return None
  return _base().with_prompts(config, workdir, folder)


def find_student(
  config: settings.Config, workdir: pathlib.Path
) -> pathlib.Path | None:
  """The student of config.model.path, in the run folder, or the base's."""
  given = config.model.path
  found = pathlib.Path(given) if given else _base().find_base()
  if found is None:
    return None
  teacher = found.expanduser().absolute()
  digest = folder_digest(str(teacher / "unet"), "config.json")[:8]
  place = workdir.absolute() if given else teacher.parent
  place.mkdir(parents=True, exist_ok=True)
  folder = place / f"student_{EDITION}_{digest}"
  if not folder.exists():
    say(f"Distilling a student of {STEPS} steps, once, in {folder}.")
    _write_student(teacher, folder)
  return folder


def _write_student(teacher: pathlib.Path, folder: pathlib.Path) -> None:
  given = settings.Model(family="sdxl", path=str(teacher), dtype="float32")
  model = open_image_model(given)
  told = model.pipeline.scheduler() | {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "timestep_spacing": "trailing",
  }
  scheduler = scheduler_from(told, source=str(teacher))
  params = dict(StoredParts(model.pipeline))
  params["unet"] = distill(
    model, params, list(shapes.CAPTIONS), make_sampler("", scheduler, STEPS)
  )
  with tempfile.TemporaryDirectory(dir=folder.parent) as name:
    rest = pathlib.Path(name)
    (rest / "scheduler").mkdir()
    write_json(rest / "scheduler" / "scheduler_config.json", told)
    for part in teacher.iterdir():  # what has no weights is copied from there
      if part.is_dir() and part.name not in (*params, "scheduler"):
        (rest / part.name).symlink_to(part)
    index = model.pipeline.index | {
      "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]
    }
    pipeline = dataclasses.replace(model.pipeline, folder=rest, index=index)
    save_pipeline(folder, pipeline, params)


def _base() -> Any:
  path = str(pathlib.Path(__file__).with_name("shapes_base.py"))
  return import_file(path, path, "find_base")
