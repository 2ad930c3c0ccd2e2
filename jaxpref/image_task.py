"""A run of a diffusion model, on latents and texts or on what they are of."""

from collections import ChainMap
from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib

import jax

from jaxpref import config, sharding
from jaxpref.data.aspect import Size
from jaxpref.data.image_steps import ImageSteps
from jaxpref.data.images import PreparedImages, prepare_images, resolution
from jaxpref.data.pixels import PreparedPixels, prepare_pixels
from jaxpref.data.prompts import prepare_prompts
from jaxpref.errors import UserError
from jaxpref.fit.encoding import encoded_first, make_encode, score_encoded
from jaxpref.fit.examples import order_examples, read_examples
from jaxpref.fit.image_errors import cached_errors
from jaxpref.fit.image_objective import reference_errors
from jaxpref.fit.image_preview import ImagePreview, encoder_weights
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
from jaxpref.fit.loss import find_loss, is_online, takes_steps
from jaxpref.fit.objectives import Objective, Roles
from jaxpref.fit.offline_objective import check_noised_steps
from jaxpref.fit.online_objective import find_image_objective
from jaxpref.fit.put import put_batch
from jaxpref.fit.rollout import check_rollout, noisy_sampler
from jaxpref.fit.task import Task
from jaxpref.fit.usable import kept_responses
from jaxpref.hosts import say
from jaxpref.models.build import Definition, init_params
from jaxpref.models.sdxl.image_model import ImageModel, open_image_model
from jaxpref.models.sdxl.lora_file import load_lora, save_lora
from jaxpref.models.sdxl.pipeline import (
  StoredParts,
  save_pipeline,
  without_decoder,
)
from jaxpref.models.source import folder_digest
from jaxpref.plan.image import image_flops
from jaxpref.sample.invert import ddim_inverse_from
from jaxpref.types import Params

_Examples = PreparedImages | PreparedPixels


def image_task(
  settings: config.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Task | None:
  """Of a UNet; None where there is nothing to train."""
  check_rollout(settings)
  check_noised_steps(settings)
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
  loss = find_loss(settings.loss)
  online = is_online(loss)
  stored = prepare_pixels if _encodes(settings) else prepare_images
  prepare = prepare_prompts if online else stored
  by_step = online or takes_steps(loss)
  sampler = noisy_sampler(settings, encoder.scheduler) if by_step else None
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
  preview = ImagePreview(settings, workdir, encoder, definition, test, mesh)
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

  if online:
    _check_size(settings.sample, resolution(settings.data, encoder))

  @functools.cache
  def flops(size: Size) -> float:
    """Of an image."""
    rows, columns = (pixels // encoder.factor for pixels in size)
    latent = rows, columns, definition.config.in_channels
    return image_flops(settings, definition, latent, sampler)

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
    flops=lambda n: flops(steps.image_shape(n)) * steps.images(n),
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
    parts = encoder_weights(encoder.pipeline, mesh)
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
    sampled=is_online(loss),
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
