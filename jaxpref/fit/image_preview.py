"""Images of the model that trains, before and after."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.data.image_index import IndexedImages
from jaxpref.data.images import resolution
from jaxpref.fit.preview import replace_samples
from jaxpref.models.build import Definition
from jaxpref.models.sdxl.image_model import ImageModel
from jaxpref.models.sdxl.pipeline import Pipeline, StoredParts, encoders
from jaxpref.sample.album import Album
from jaxpref.sample.image import make_images, make_recipe
from jaxpref.sample.prompts import read_captions
from jaxpref.score.image_stage import open_scorers
from jaxpref.score.raters import preference_rate
from jaxpref.types import Params


class ImagePreview:
  """Images of a fixed list of prompts, from the same noise each time."""

  def __init__(
    self,
    settings: config.Config,
    workdir: pathlib.Path,
    encoder: ImageModel,
    definition: Definition,
    test: IndexedImages | None,
    mesh: jax.sharding.Mesh,
  ):
    self._settings, self._workdir, self._mesh = settings, workdir, mesh
    self._scorers = open_scorers(settings.score)
    pipeline = dataclasses.replace(
      encoder.pipeline,
      definitions={**encoder.definitions, "unet": definition},
    )
    self._stored = encoder.pipeline
    self._model = dataclasses.replace(encoder, pipeline=pipeline)
    self._prompts = self._choose(test)
    side = resolution(settings.data, self._model)
    sized = dataclasses.replace(
      settings.sample,
      height=settings.sample.height or side,
      width=settings.sample.width or side,
    )
    # Compiled when it is first asked for; a mistake in the settings comes now.
    self._make = make_images(self._model, make_recipe(self._model, sized))

  def write(self, step: int, unet: Params) -> dict[str, float]:
    """Makes the images of samples/step_STEP."""
    if not self._prompts:
      return {}
    times = self._settings.sample.per_prompt
    prompts = [prompt for prompt in self._prompts for _ in range(times)]
    params = {**encoder_weights(self._stored, self._mesh), "unet": unet}
    pixels = self._make(params, prompts, range(len(prompts)))
    if jax.process_index():
      return {}
    scores = {
      name: [float(each) for each in scorer(list(pixels), prompts)]
      for name, scorer in self._scorers.items()
    }
    self._keep(step, prompts, pixels, scores)
    return self._compared(scores)

  def _compared(
    self, scores: Mapping[str, Sequence[float]]
  ) -> dict[str, float]:
    """Means, and the share that the first rates higher than before training."""
    found = {f"samples/{name}": float(np.mean(x)) for name, x in scores.items()}
    for name, after in scores.items():
      path = self._workdir / "samples" / "samples.jsonl"
      rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
      before = [x["scores"].get(name) for x in rows
                if x["step"] == 0 and "scores" in x]  # fmt: skip
      if len(before) == len(after) and None not in before:
        found.setdefault("samples/preferred", preference_rate(after, before))
    return found

  def _keep(
    self,
    step: int,
    prompts: Sequence[str],
    pixels: np.ndarray,
    scores: Mapping[str, Sequence[float]],
  ) -> None:
    """In place of what an earlier run, of other prompts perhaps, has left."""
    samples, seed = self._workdir / "samples", self._settings.sample.seed
    folder = samples / f"step_{step:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    album = Album(folder, prompts, {"step": step, "seed": seed})
    for number, each in enumerate(pixels):
      album.put(number, each)
    album.close()
    rows: list[dict[str, Any]] = [
      {
        "prompt": prompt,
        "response": f"{folder.name}/{album.path(number).name}",
        "seed": seed,
      }
      for number, prompt in enumerate(prompts)
    ]
    if scores:
      for number, row in enumerate(rows):
        row["scores"] = {name: each[number] for name, each in scores.items()}
    replace_samples(samples / "samples.jsonl", step, rows)

  def _choose(self, test: IndexedImages | None) -> list[str]:
    sample = self._settings.sample
    if sample.prompts:
      return read_captions(pathlib.Path(sample.prompts), sample.num_prompts)
    if test is None:
      return []
    count = min(sample.num_prompts, len(test))
    return [test.caption(i) for i in range(count)]


def encoder_weights(
  pipeline: Pipeline, mesh: jax.sharding.Mesh
) -> dict[str, Params]:
  """The weights of the autoencoder and the text encoders."""
  places = {
    name: sharding.param_shardings(mesh, each.shapes, each.axes)
    for name, each in encoders(pipeline.definitions).items()
  }
  parts = StoredParts(pipeline, places)
  return {name: parts[name] for name in places}
