"""`--plan=TOPOLOGY`: compiles the step of a config without its hardware.

What is particular to a kind of model is in one file each (`text`, `image`): the
shapes of a step and its useful operations. The rest knows programs only.
"""

import dataclasses
import json
import pathlib

from jaxpref import config, sharding
from jaxpref.files import replacing
from jaxpref.plan.image import image_job
from jaxpref.plan.job import measure
from jaxpref.plan.page import as_json, as_text
from jaxpref.plan.text import text_job
from jaxpref.plan.topology import find_devices, stay_on_cpu

__all__ = ["plan", "stay_on_cpu"]


def plan(settings: config.Config, workdir: pathlib.Path, topology: str) -> str:
  """Plans a config for a topology, and writes `plan.json` in the run folder.

  Returns: the same for people.

  Raises UserError for a topology or settings that cannot be.
  """
  mesh = sharding.make_mesh(
    **dataclasses.asdict(settings.mesh), devices=find_devices(topology)
  )
  images = settings.model.family == "sdxl"
  job = (image_job if images else text_job)(settings, mesh)
  measured = measure(job, mesh)
  workdir = workdir.expanduser()
  workdir.mkdir(parents=True, exist_ok=True)
  written = as_json(topology, settings, mesh, job, measured)
  with replacing(workdir / "plan.json") as partial:
    partial.write_text(json.dumps(written, indent=2) + "\n")
  return as_text(topology, settings, mesh, job, measured)
