"""A diffusion model of simulated images, trained from nothing.

  python -m jaxpref.launch --config=configs/shapes_base.py \\
    --workdir=runs/shapes_base

The images are made up (jaxpref/data/shapes.py): a small or large circle,
square or triangle of any colour on white, 32 pixels a side. First a small
autoencoder learns to reconstruct them; then the UNet learns to denoise their
latents (`loss.name=denoising`), told the caption by a random text encoder that
stays as it is. runs/shapes_base/export is a folder that diffusers loads.

On one run the denoising error fell from 0.94, the mean of the first 20 steps,
to 0.084, in a minute of steps. Samples are coloured blobs on white, small and
large as the caption says; which of the three shapes it is can be told of some
of them only. Most of the rest of the time is the autoencoder's.

The other configs of shapes train this model themselves where they are given
none, once, below $JAXPREF_CACHE. Do not start two of them at once before it is
there.
"""

import dataclasses
import hashlib
import json
import pathlib

import ml_collections
import numpy as np

from jaxpref import config as settings
from jaxpref.data import shapes
from jaxpref.fit.autoencoder import train_autoencoder
from jaxpref.hosts import say
from jaxpref.models.build import define
from jaxpref.models.sdxl.small import small_vae, write_small
from jaxpref.run import run
from jaxpref.score.raters import redness

EDITION = 2  # of what the base depends on beside its config


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl", "remat": ""}
  config.loss = {"name": "denoising"}
  config.diffusion = {"drop_caption": 0.1}
  config.data = {"batch_size": 32, "rows_per_device": 32}
  config.optimizer = {
    "learning_rate": 4e-3,
    "schedule": "cosine",
    "warmup_steps": 20,
  }
  config.train = {"steps": 400, "log_every": 20}
  config.sample = {
    "num_prompts": 6,
    "per_prompt": 6,
    "steps": 20,
    "guidance": 1.0,
  }
  config.score = {"rater": "red"}
  return config


def get_recipe() -> ml_collections.ConfigDict:
  """What the configs that train this model on preferences have in common."""
  config = ml_collections.ConfigDict()
  config.model = {"family": "sdxl", "remat": ""}
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


def make_inputs(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config:
  """Draws the images and makes the model that is trained, each once."""
  model, images = workdir / "untrained", workdir / "images.parquet"
  if not images.exists():
    shapes.write_shapes(images, num_images=3000, seed=0)
  if not model.exists():
    say("Teaching a small autoencoder the simulated shapes.")
    pixels = np.stack([x.pixels for x in shapes.draw_shapes(2000, seed=1)])
    vae = define(small_vae(shapes.SIDE), dtype="float32", remat="")
    trained = train_autoencoder(vae, pixels, steps=400, batch_size=16)
    write_small(model, *trained, shapes.WORDS)
  return _with_paths(config, workdir, model, images)


def prefer_red(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """Draws pairs and trains the base where none are given; each once.

  Returns: the config with the paths of both; None if interrupted.
  """
  pairs = pathlib.Path(config.data.path or workdir / "pairs.parquet")
  if not (config.data.path or pairs.exists()):
    shapes.write_pairs(pairs, num_pairs=1000, seed=2, rate=redness)
  return _on_base(config, workdir, pairs)


def rank_red(
  config: settings.Config, workdir: pathlib.Path
) -> settings.Config | None:
  """As `prefer_red`, with as many images in lists of four."""
  lists = pathlib.Path(config.data.path or workdir / "lists.parquet")
  if not (config.data.path or lists.exists()):
    shapes.write_lists(lists, num_lists=500, size=4, seed=2, rate=redness)
  return _on_base(config, workdir, lists)


def find_base() -> pathlib.Path | None:
  """The folder of the base, trained unless it is there; None if interrupted."""
  base = settings.build(get_config().to_dict())
  told = json.dumps([EDITION, settings.to_dict(base)])
  name = hashlib.sha256(told.encode()).hexdigest()[:16]
  place = settings.cache_folder() / "shapes" / name
  if not (place / "export").exists():
    say(f"Training the base, once for all runs, in {place}.")
    if not run(make_inputs(base, place), place):
      return None
  return place / "export"


def _on_base(
  config: settings.Config, workdir: pathlib.Path, data: pathlib.Path
) -> settings.Config | None:
  """With the data and a base, which is trained unless it is there."""
  given = config.model.path
  model = pathlib.Path(given) if given else find_base()
  return None if model is None else _with_paths(config, workdir, model, data)


def _with_paths(
  config: settings.Config,
  workdir: pathlib.Path,
  model: pathlib.Path,
  data: pathlib.Path,
) -> settings.Config:
  return dataclasses.replace(
    with_prompts(config, workdir, model),
    data=dataclasses.replace(config.data, path=str(data)),
  )


def with_prompts(
  config: settings.Config, workdir: pathlib.Path, model: pathlib.Path
) -> settings.Config:
  """With the path of a model, and the captions to sample."""
  workdir.mkdir(parents=True, exist_ok=True)
  prompts = workdir / "prompts.txt"
  prompts.write_text("".join(f"{each}\n" for each in shapes.CAPTIONS))
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, path=str(model)),
    sample=dataclasses.replace(config.sample, prompts=str(prompts)),
  )
