"""The planned step on latents, on eight devices of this machine."""

import json

import jax
import numpy as np
import pytest

from jaxpref import config, sharding
from jaxpref.errors import UserError
from jaxpref.plan import image
from jaxpref.plan.image import SMALL_TILES, image_job
from jaxpref.plan.job import _kept, measure

_EVERYWHERE = jax.sharding.PartitionSpec()


@pytest.fixture
def build(sdxl_folder):
  """build(loss={...}, ...) -> a config of eight prompts a step."""

  def make(**sections) -> config.Config:
    tree = {
      "model": {"family": "sdxl", "path": str(sdxl_folder), "remat": ""},
      "data": {"batch_size": 8, "rows_per_device": 2},
      "loss": {"name": "dpo"},
    }
    for name, section in sections.items():
      tree[name] = {**tree.get(name, {}), **section}
    return config.build(tree)

  return make


def test_a_step_on_eight_devices(build):
  mesh = sharding.make_mesh(1, 4, 2)
  job = image_job(build(), mesh)
  batch = job.batch
  # Eight images a micro-batch, two of each prompt.
  assert batch.mean.shape == (2, 8, 8, 8, 4)
  assert batch.context.shape == (2, 4, 77, 12)
  assert batch.pooled.shape == (2, 4, 8)
  assert batch.comparisons.valid.shape == (2, 4)
  assert batch.mean.sharding.shard_shape(batch.mean.shape)[:2] == (2, 2)
  assert batch.slots.valid.sharding.spec == _EVERYWHERE
  assert "2 x 8 latents of 8 x 8, 2 of a prompt. 8 prompts" in job.assumes[0]
  assert set(job.frozen) == {"reference"}
  measured = measure(job, mesh)
  assert measured.chips == 8
  assert measured.fits
  # Nothing is computed twice here. Useful is 3 F, also of the first layers,
  # whose inputs have no gradient.
  assert measured.useful == pytest.approx(measured.computed, rel=0.01)
  assert measured.collectives["all-gather"].bytes > 0
  # Of policy and reference a chip has less than its share along fsdp alone.
  held = jax.tree.leaves((job.state.params, job.frozen))
  whole = sum(x.size * x.dtype.itemsize for x in held)
  assert 0 < measured.memory.parameters < whole / 4
  assert measured.memory.activations > 0


def test_the_largest_of_several_shapes(build):
  """At 128 pixels six shapes are 184 × 88, 160 × 104, 136 × 120 and turned."""
  data = {"resolution": 128, "aspect_buckets": 6, "batch_size": 1}
  mesh = sharding.make_mesh(1, 1, 1)
  stored = image_job(build(data=data), mesh)
  assert stored.batch.mean.shape == (1, 2, 20, 13, 4)
  assert "1 x 2 latents of 20 x 13, 2 of a prompt" in stored.assumes[0]
  assert "the largest; each is compiled" in stored.assumes[-1]
  pixels = image_job(build(data=data | {"encode": "during"}), mesh)
  assert pixels.batch.pixels.shape == (1, 2, 160, 104, 3)
  with pytest.raises(UserError, match=r"aspect_buckets is 40, .* Set it to"):
    image_job(build(data=data | {"aspect_buckets": 40}), mesh)


def test_a_step_from_pixels(build, sd_folder):
  """The encoders are counted, in float32."""
  mesh = sharding.make_mesh(1, 1, 1)
  stored, pixels = (
    image_job(
      build(
        model={"path": str(sd_folder)},
        data={"encode": encode, "batch_size": 1, "resolution": 8},
      ),
      mesh,
    )
    for encode in ("before", "during")
  )
  encoders = pixels.frozen.keys() - stored.frozen.keys()
  assert encoders == {"vae", "text_encoder"}
  assert pixels.batch.pixels.shape == (1, 2, 8, 8, 3)
  assert stored.batch.mean.shape == (1, 2, 4, 4, 4)
  assert pixels.batch.ids["text_encoder"].shape == (1, 1, 77)
  assert "encoded during training" in pixels.assumes[-1]
  assert "decoder" not in pixels.frozen["vae"]  # which makes no latents
  added = jax.tree.leaves([pixels.frozen[name] for name in encoders])
  assert {x.dtype for x in added} == {np.dtype(np.float32)}
  held = jax.tree.leaves((stored.state.params, stored.frozen))
  measured = measure(pixels, mesh)
  assert measured.memory.parameters == sum(4 * x.size for x in held + added)
  assert measured.useful == stored.useful_flops
  # Nothing of the encoders is kept for the backward pass.
  assert _kept(pixels) == _kept(stored)


def test_what_encodes_must_be_known(build, sdxl_folder):
  """SDXL's own is; of a UNet alone it is not."""
  mesh = sharding.make_mesh(1, 1, 1)
  shape = json.loads((sdxl_folder / "unet" / "config.json").read_text())
  model = {"path": "", "arch": shape}
  assert image_job(build(model=model), mesh).batch.mean.shape[-3:] == (8, 8, 4)
  with pytest.raises(UserError, match=r"tells the UNet alone\. Give"):
    image_job(build(model=model, data={"encode": "during"}), mesh)
  found = image._encoders(config.Model(arch={"preset": "sdxl-base"}))
  assert found["vae"].config.factor == 8
  table = found["text_encoder_2"].shapes["token_embedding"]
  assert [x.shape for x in jax.tree.leaves(table)] == [(49408, 1280)]


def test_a_list_has_four_images(build):
  mesh = sharding.make_mesh(2, 2, 1)
  data = {"rows_per_device": 3}
  batch = image_job(build(loss={"name": "rank_dpo"}, data=data), mesh).batch
  assert batch.slots.valid.shape == (3, 12)
  assert batch.lists.slot.shape == (3, 3, 4)
  # Three prompts, and a place more, so that each device has as many.
  assert batch.context.shape[:2] == (3, 4)
  with pytest.raises(UserError, match=r"A prompt has 4 images.* and 3 fit"):
    image_job(
      build(loss={"name": "rank_dpo"}, data=data),
      sharding.make_mesh(1, 1, 1),
    )


def test_images_that_are_sampled_take_the_place_of_their_prompt(build):
  mesh = sharding.make_mesh(1, 4, 1)
  pso = {
    "loss": {"name": "pso"},
    "sample": {"sampler": "lcm", "steps": 4, "guidance": 1.0},
    "score": {"rater": "red"},
  }
  job = image_job(build(**pso), mesh)
  assert job.batch.slots.valid.shape == (1, 8)  # of eight prompts
  assert set(job.frozen) == {"reference", "vae"}
  # Of F a call and 4 F a trained image: two of each prompt are made in four
  # steps, three of which are learned from; of pairs, one image takes 4 F.
  one = image_job(build(), mesh).useful_flops / 16
  per_prompt = job.useful_flops / 8
  assert per_prompt == pytest.approx(one * 2 * (4 / 4 + 3))
  values = jax.eval_shape(
    lambda params, frozen, batch, key: job.objective.forward(
      params, frozen, jax.tree.map(lambda x: x[0], batch), key
    ),
    job.state.params,
    job.frozen,
    job.batch,
    jax.random.key(0),
  )
  assert [x.shape for x in values] == [(8, 2, 3), (8, 2)]
  with pytest.raises(UserError, match="learns from the noise"):
    image_job(build(**{**pso, "sample": {"guidance": 1.0}}), mesh)


def test_images_that_are_noised_to_a_sampler_s_steps(build):
  mesh = sharding.make_mesh(1, 4, 1)
  given = {
    "loss": {"name": "pso_offline"},
    "sample": {"sampler": "lcm", "steps": 4},
  }
  job = image_job(build(**given), mesh)
  assert set(job.frozen) == {"reference"}
  # Three steps with noise, each a latent that trains.
  assert job.useful_flops == 3 * image_job(build(), mesh).useful_flops
  values = jax.eval_shape(
    lambda params, frozen, batch, key: job.objective.forward(
      params, frozen, jax.tree.map(lambda x: x[0], batch), key
    ),
    job.state.params,
    job.frozen,
    job.batch,
    jax.random.key(0),
  )
  assert {x.shape for x in values} == {(job.batch.slots.valid.shape[1], 3)}


def test_cached_errors_take_the_reference_s_place(build):
  mesh = sharding.make_mesh(1, 1, 1)
  job = image_job(build(diffusion={"noise_bank": 2}), mesh)
  assert job.batch.ref_error.shape == job.batch.slots.valid.shape
  assert not job.frozen
  live = image_job(build(), mesh)
  assert live.batch.ref_error is None
  assert job.useful_flops == 0.75 * live.useful_flops
  jax.eval_shape(
    lambda params, batch, key: job.objective(
      params, {}, {}, jax.tree.map(lambda x: x[0], batch), key
    )[0],
    job.state.params,
    job.batch,
    jax.random.key(0),
  )


def test_a_tpu_s_compiler_is_asked_for_small_tiles(build, tpu_devices):
  here = image_job(build(), sharding.make_mesh(1, 4, 2))
  assert not here.compiler_options
  mesh = sharding.make_mesh(1, 4, 2, devices=tpu_devices)
  there = image_job(build(), mesh)
  assert there.compiler_options == SMALL_TILES
  assert there.assumes[-1].startswith("Compiled with small tiles")
  with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
    measure(there._replace(compiler_options={"no_such_option": "1"}), mesh)
