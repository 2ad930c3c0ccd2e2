"""CLIP's towers against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpref.models.build import bind, define
from jaxpref.models.sdxl.parts import load_part, read_part, save_part

TEXTS = ("a photo of a cat", "", "two red foxes, oil on canvas " * 20)


def _load(folder):
  definition = define(read_part(folder), dtype="float32")
  return definition, load_part(folder, definition)


def _run(definition, params, x):
  return jax.jit(lambda params, x: bind(definition, params)(x))(params, x)


def _ids(shared, pad):
  folder = shared / "models" / "clip-tokenizer"
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad)
  return tokenizer(
    list(TEXTS),
    padding="max_length",
    max_length=77,
    truncation=True,
    return_tensors="np",
  )["input_ids"]


# SDXL's first encoder: activation, wrong end id, padding; then its second.
@pytest.mark.parametrize(
  ("projected", "pad", "config"),
  [
    (False, "<|endoftext|>", {"hidden_act": "quick_gelu", "eos_token_id": 2}),
    (True, "!", {"hidden_act": "gelu", "eos_token_id": 49407}),
  ],
  ids=["clip_l", "bigg"],
)
def test_states_and_pooled_are_transformers(
  shared, make_text, projected, pad, config
):
  model, folder = make_text(projected, **config)
  ids = _ids(shared, pad)
  assert (ids[1, 2:] == (0 if pad == "!" else 49407)).all()
  definition, params = _load(folder)
  ours = _run(definition, params, jnp.asarray(ids, jnp.int32))
  with torch.no_grad():
    theirs = model(torch.tensor(ids), output_hidden_states=True)
  pooled = theirs.text_embeds if projected else theirs.pooler_output
  # Measured: 2e-6 at most, with values of up to 4.3.
  for mine, other in (
    (ours.penultimate, theirs.hidden_states[-2]),
    (ours.last, theirs.last_hidden_state),
    (ours.pooled, pooled),
  ):
    np.testing.assert_allclose(mine, other.numpy(), atol=1e-4)
  # The other end would be seen: of an empty text it is the second token, and
  # where "!" pads it is not the last one.
  wrong = dataclasses.replace(definition.config, eos_token_id=320)
  wrong = _run(
    define(wrong, dtype="float32"), params, jnp.asarray(ids, "int32")
  )
  assert np.abs(wrong.pooled - pooled.numpy()).max() > 1e-2


def test_a_text_model_comes_back_as_version_4_names_it(make_text, tmp_path):
  _, folder = make_text(False)
  definition, params = _load(folder)
  assert definition.table[-1].name.startswith("text_model.")
  save_part(tmp_path / "out", definition, params)
  again = transformers.CLIPTextModel.from_pretrained(tmp_path / "out")
  before = transformers.CLIPTextModel.from_pretrained(folder)
  for name, tensor in before.state_dict().items():
    assert torch.equal(tensor, again.state_dict()[name]), name


def test_vectors_of_images_are_transformers(tmp_path, randomized):
  config = transformers.CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=10,
    image_size=12,
    patch_size=4,
  )
  model = randomized(transformers.CLIPVisionModelWithProjection(config))
  model.save_pretrained(tmp_path)
  definition, params = _load(tmp_path)
  pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype("f4")
  ours = _run(definition, params, pixels)
  with torch.no_grad():
    theirs = model(torch.tensor(pixels).permute(0, 3, 1, 2)).image_embeds
  # Measured: 5e-7, with values of up to 2.2.
  np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
  flipped = _run(definition, params, pixels.swapaxes(1, 2))
  assert np.abs(flipped - theirs.numpy()).max() > 1e-2
