"""A run of a diffusion model, on latents and texts or on what they are of."""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from jaxpref import config, sharding
from jaxpref.data.image_steps import ImageSteps
from jaxpref.data.images import PreparedImages, prepare_images, resolution
from jaxpref.data.pixels import PreparedPixels, prepare_pixels
from jaxpref.errors import UserError
from jaxpref.fit.encoding import encoded_first, make_encode, score_encoded
from jaxpref.fit.examples import order_examples, read_examples
from jaxpref.fit.image_errors import cached_errors
from jaxpref.fit.image_objective import reference_errors
from jaxpref.fit.image_reference import (
  define_unet,
  image_roles,
  is_other,
  with_image_mode,
)
from jaxpref.fit.image_reward import (
  ROLE,
  Reward,
  describe_all,
  find_reward,
  place_rater,
)
from jaxpref.fit.loss import find_loss, is_online
from jaxpref.fit.objectives import Objective, Roles
from jaxpref.fit.online_objective import find_image_objective
from jaxpref.fit.preview import replace_samples
from jaxpref.fit.put import put_batch
from jaxpref.fit.rollout import IMAGES, check_rollout, noisy_sampler
from jaxpref.fit.task import Task
from jaxpref.fit.usable import kept_responses
from jaxpref.hosts import say
from jaxpref.models.build import Definition, init_params
from jaxpref.models.sdxl.image_model import ImageModel, open_image_model
from jaxpref.models.sdxl.lora_file import load_lora, save_lora
from jaxpref.models.sdxl.pipeline import (
  Pipeline,
  StoredParts,
  encoders,
  save_pipeline,
  without_decoder,
)
from jaxpref.models.source import folder_digest
from jaxpref.plan.image import image_flops
from jaxpref.sample.album import Album
from jaxpref.sample.image import make_images, make_recipe
from jaxpref.sample.invert import ddim_inverse_from
from jaxpref.sample.prompts import read_prompts
from jaxpref.score.image_stage import open_scorers
from jaxpref.score.raters import preference_rate
from jaxpref.types import Params

_Examples = PreparedImages | PreparedPixels


def image_task(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Task | None:
  """Of a UNet; None where there is nothing to train."""
  check_rollout(settings)
  settings = with_image_mode(settings)
  if settings.data.sources:
    raise UserError(
      "config.data.sources mixes sources of text. Put the images into the "
      "files of one folder, and name that in config.data.path."
    )
  encoder = open_image_model(_exact(settings.model))
  if encoder.takes_rating:
    raise UserError(
      f"{settings.model.path} is a refiner, which goes on from images of "
      "another model. Train that one; a refiner is for the stage 'sample'."
    )
  _check_noise(settings.diffusion, encoder)
  prepare = prepare_pixels if _encodes(settings) else prepare_images
  online = is_online(find_loss(settings.loss))
  sampler = noisy_sampler(settings, encoder.scheduler) if online else None
  reward = find_reward(settings.score) if online else None
  train, test = read_examples(
    settings, lambda data, path: prepare(data, path, encoder, say)
  )
  if "fit" not in settings.stages:
    return None
  definition = define_unet(settings.model, encoder.definitions["unet"].config)
  steps, test_steps = _make_steps(settings, train, test, mesh, reward)
  folder = encoder.pipeline.folder / "unet"
  load = functools.partial(_load, settings, encoder, definition)
  preview = _Preview(settings, workdir, encoder, definition, test, mesh)
  vae = encoder.definitions["vae"]

  def export(trained: Params, whole: Params) -> pathlib.Path:
    pipeline = dataclasses.replace(
      encoder.pipeline,
      definitions={**encoder.definitions, "unet": definition},
    )
    stored = StoredParts(encoder.pipeline)
    parts = ChainMap({"unet": whole}, stored)  # type: ignore[arg-type]
    save_pipeline(workdir / "export", pipeline, parts)
    if definition.base:
      save_lora(workdir / "adapter", definition, trained)
    return workdir / "export"

  def open_reference() -> tuple[dict[str, Params], Callable[[], None]]:
    frozen = _open_reference(
      settings, encoder, definition, mesh, steps, test_steps
    )
    if online:
      places = sharding.param_shardings(mesh, vae.shapes, vae.axes)
      frozen["vae"] = StoredParts(encoder.pipeline, {"vae": places})["vae"]
    if reward and reward.scorer:
      frozen[ROLE] = place_rater(reward.scorer, mesh)
    return frozen, lambda: None

  pixels = resolution(settings.data, encoder)
  if online:
    _check_size(settings.sample, pixels)
  side = pixels // encoder.factor
  latent = side, side, definition.config.in_channels
  one = image_flops(settings, definition, latent, sampler)
  return Task(
    settings=settings,
    definition=definition,
    load=load,
    base=folder_digest(str(folder), "config.json") if definition.base else "",
    train=train,
    test=test,
    steps=steps,
    test_steps=test_steps,
    put=functools.partial(put_batch, mesh),
    objective=functools.partial(
      _objective, settings, encoder, definition, reward
    ),
    open_reference=open_reference,
    flops=lambda number: one * steps.images(number),
    preview=preview.write,
    export=export,
  )


def _check_size(sample: config.Sample, pixels: int) -> None:
  """Raises UserError where images are shown in another size than trained."""
  for name in ("height", "width"):
    if getattr(sample, name) not in (0, pixels):
      raise UserError(
        f"config.sample.{name} is {getattr(sample, name)}, and training "
        f"samples images of {pixels} pixels a side. Set it to 0, and "
        "config.data.resolution to the size."
      )


def _encodes(settings: config.Config) -> bool:
  """Whether images and captions are encoded as training goes."""
  return settings.data.encode == "during"


def _objective(
  settings: config.Config,
  encoder: ImageModel,
  definition: Definition,
  reward: Reward | None,
  *,
  training: bool = False,
) -> Objective:
  vae, scheduler = encoder.definitions["vae"], encoder.scheduler
  rate = reward and reward.rate
  found = find_image_objective(
    definition, vae, settings, scheduler, rate, training=training
  )
  if not _encodes(settings):
    return found
  return encoded_first(found, make_encode(encoder.definitions))


def _exact(settings: config.Model) -> config.Model:
  """The parts as they are stored: what encodes does so in float32."""
  return dataclasses.replace(
    settings, dtype="float32", param_dtype="float32", lora=config.Lora()
  )


def _check_noise(settings: config.Diffusion, model: ImageModel) -> None:
  _check_inversion(settings, model)
  last = model.scheduler.num_train_timesteps - 1
  outside = [each for each in settings.timesteps if not 0 <= each <= last]
  if outside:
    raise UserError(
      f"config.diffusion.timesteps holds {outside[0]}; each must be at least 0 "
      f"and at most {last}, the model's last."
    )


def _check_inversion(settings: config.Diffusion, model: ImageModel) -> None:
  steps, scheduler = settings.inversion_steps, model.scheduler
  if steps > scheduler.num_train_timesteps:
    raise UserError(
      f"config.diffusion.inversion_steps is {steps}; it must be at most "
      f"{scheduler.num_train_timesteps}, the model's timesteps."
    )
  if steps and scheduler.prediction_type == "flow":
    raise UserError(
      "config.diffusion.inversion_steps is for diffusion models, and this is a "
      "flow model. Set it to 0."
    )
  if steps:
    ddim_inverse_from(scheduler, steps)  # which knows what else cannot be


def _load(
  settings: config.Config,
  encoder: ImageModel,
  definition: Definition,
  shardings: Mapping,
) -> Params:
  """What trains, each tensor straight into its shards."""
  lora = definition.lora
  if not lora.rank:
    return StoredParts(encoder.pipeline, {"unet": shardings})["unet"]
  if lora.path:
    return load_lora(lora.path, definition, shardings)
  key = jax.random.key(settings.train.seed)
  return init_params(definition, key, shardings)


def _open_reference(
  settings: config.Config,
  encoder: ImageModel,
  definition: Definition,
  mesh: jax.sharding.Mesh,
  steps: ImageSteps,
  test_steps: ImageSteps | None,
) -> dict[str, Params]:
  """The frozen parameters by role; cached errors are put into the steps."""
  path, lora = settings.reference.path, settings.model.lora.path
  model = encoder
  if is_other(settings):
    named = dataclasses.replace(settings.model, path=path)
    model = open_image_model(_exact(named))

  def load(role: str, of: Definition) -> Params:
    places = sharding.param_shardings(mesh, of.shapes, of.axes)
    if role == "reference_factors":
      return load_lora(lora, of, places)
    found = model if role == "reference" else encoder
    parts = dataclasses.replace(
      found.pipeline, definitions={**found.definitions, "unet": of}
    )
    return StoredParts(parts, {"unet": places})["unet"]

  roles = image_roles(settings, definition)
  frozen = {role: load(role, of) for role, of in roles.items()}
  score = reference_errors(definition, settings, encoder.scheduler)
  if _encodes(settings):
    parts = _encoders(encoder.pipeline, mesh)
    frozen |= {**parts, "vae": without_decoder(parts["vae"])}
    score = score_encoded(score, make_encode(encoder.definitions))
  if settings.reference.mode != "cached":
    return frozen
  reference = dataclasses.replace(settings.reference, mode="live")
  live = image_roles(
    dataclasses.replace(settings, reference=reference), definition
  )

  @functools.cache
  def load_live() -> Roles:
    return frozen | {x: load(x, live[x]) for x in live.keys() - roles.keys()}

  weights = folder_digest(str(model.pipeline.folder / "unet"), "config.json")
  for part in filter(None, (steps, test_steps)):
    part.ref_error = cached_errors(
      part,
      score,
      load_live,
      functools.partial(put_batch, mesh),
      dtype=settings.model.dtype,
      depends={
        "weights": weights,
        "adapter": folder_digest(lora) if "reference_factors" in live else "",
        "scheduler": dataclasses.asdict(encoder.scheduler),
        "diffusion": dataclasses.asdict(settings.diffusion),
        "seeds": [settings.train.seed, settings.data.seed],
        # Of held-out examples none is dropped nor mirrored.
        "drawn": [part.noise_bank, part.drop_caption, part.flip],
        "param_dtype": (definition.base or definition).storage,
        "platform": sharding.current_platform(),
      },
    )
  return frozen


def _make_steps(
  settings: config.Config,
  train: _Examples,
  test: _Examples | None,
  mesh: jax.sharding.Mesh,
  reward: Reward | None,
) -> tuple[ImageSteps, ImageSteps | None]:
  data, loss = settings.data, find_loss(settings.loss)
  parts = (train, test) if test else (train,)
  captions = [x for part in parts for x in part.listed["captions"]]
  make = functools.partial(
    ImageSteps,
    batch_size=data.batch_size,
    per_device=data.rows_per_device,
    devices=mesh.shape["data"] * mesh.shape["fsdp"],
    seed=data.seed,
    sampled=IMAGES if is_online(loss) else 0,
    described=reward and describe_all(reward.scorer, captions),
  )
  order, num_steps = order_examples(settings, train)
  steps = make(
    train,
    kept=kept_responses(train, loss),
    order=order,
    num_steps=num_steps,
    noise_bank=settings.diffusion.noise_bank,
    drop_caption=settings.diffusion.drop_caption,
    flip=data.flip,
  )
  held_out = (
    make(test, kept=kept_responses(test, loss), noise_bank=1) if test else None
  )
  return steps, held_out


class _Preview:
  """Images of a fixed list of prompts, from the same noise each time."""

  def __init__(
    self,
    settings: config.Config,
    workdir: pathlib.Path,
    encoder: ImageModel,
    definition: Definition,
    test: _Examples | None,
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
    params = {**_encoders(self._stored, self._mesh), "unet": unet}
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

  def _choose(self, test: _Examples | None) -> list[str]:
    sample = self._settings.sample
    if sample.prompts:
      prompts = read_prompts(pathlib.Path(sample.prompts))
      return [str(prompt) for prompt in prompts[: sample.num_prompts]]
    if test is None:
      return []
    count = min(sample.num_prompts, len(test))
    return [test.caption(i) for i in range(count)]


def _encoders(pipeline: Pipeline, mesh: jax.sharding.Mesh) -> dict[str, Params]:
  """The weights of the autoencoder and the text encoders."""
  places = {
    name: sharding.param_shardings(mesh, each.shapes, each.axes)
    for name, each in encoders(pipeline.definitions).items()
  }
  parts = StoredParts(pipeline, places)
  return {name: parts[name] for name in places}
