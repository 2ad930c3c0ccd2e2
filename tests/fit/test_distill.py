"""A few steps of distillation, of a teacher of few weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import config
from jaxpref.fit.distill import distill
from jaxpref.models.build import bind
from jaxpref.models.sdxl.image_model import open_image_model, tokenize
from jaxpref.models.sdxl.pipeline import StoredParts, encode_text
from jaxpref.sample.denoise import denoise
from jaxpref.sample.guidance import unguided
from jaxpref.sample.samplers import ddim, euler_ancestral

PROMPTS = ["one", "another"]


@pytest.fixture(scope="module")
def teacher(sd_folder):
  given = config.Model(family="sdxl", path=str(sd_folder), dtype="float32")
  model = open_image_model(given)
  return model, dict(StoredParts(model.pipeline))


def test_a_student_says_at_once_where_its_teacher_ends(teacher):
  """From noise that the teacher never began with."""
  model, params = teacher
  scheduler = dataclasses.replace(
    model.scheduler, timestep_spacing="trailing", set_alpha_to_one=True
  )
  sampler = euler_ancestral(scheduler, 2)
  ids, _ = tokenize(model, PROMPTS)
  context, _ = encode_text(
    model.definitions, params, jax.tree.map(jnp.asarray, ids)
  )
  noise = jax.random.normal(jax.random.key(9), (16, 8, 8, 4))
  told = context[jnp.arange(16) % 2]

  def ends(unet, steps):
    def ask(x, time, text):
      return bind(model.definitions["unet"], unet)(x, time, text, None)

    return np.array(
      jax.jit(
        lambda unet: denoise(
          unguided(ask, told), steps, noise, prediction="epsilon"
        )
      )(unet)
    )

  goal = ends(params["unet"], ddim(scheduler, 4).steps)
  once = ddim(scheduler, 1).steps
  student = distill(
    model,
    params,
    PROMPTS,
    sampler,
    teacher_steps=4,
    images=64,
    steps=60,
    batch_size=32,
  )
  apart = [
    np.mean((ends(unet, once) - goal) ** 2)
    for unet in (params["unet"], student)
  ]
  assert apart[1] < 0.5 * apart[0], apart
