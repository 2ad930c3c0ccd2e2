"""Images and captions encoded before training: what, and how often."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxpref import config
from jaxpref.data import numbered
from jaxpref.data.images import fit_square, prepare_images
from jaxpref.errors import UserError
from jaxpref.models.build import bind
from jaxpref.models.sdxl.image_model import open_image_model, tokenize
from jaxpref.models.sdxl.pipeline import StoredParts, encode_text


@pytest.fixture(scope="module")
def model(sd_folder):
  settings = config.Model(family="sdxl", path=str(sd_folder), dtype="float32")
  return open_image_model(settings)


@pytest.fixture(scope="module")
def parts(model):
  return dict(StoredParts(model.pipeline))


@pytest.fixture
def data(tmp_path):
  """Ten images in five rows; the first image is in a row that is refused too,
  and in the last one again."""
  rng = np.random.default_rng(0)
  for name in range(10):
    pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{name}.png")
  (tmp_path / "broken.png").write_bytes(b"no image")
  pairs = [(8, "broken"), (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (8, 0)]
  rows = [
    {"prompt": f"pair {i % 2}", "chosen": f"{a}.png", "rejected": f"{b}.png"}
    for i, (a, b) in enumerate(pairs)
  ]
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return config.Data(path=str(path), max_rejected=0.2)


@pytest.fixture
def prepare(data, model, tmp_path, monkeypatch):
  """prepare(say) -> the images, four to a file."""
  monkeypatch.setattr(numbered, "PER_FILE", 4)

  def call(say=lambda text: None):
    return prepare_images(data, data.path, model, say, tmp_path / "cache")

  return call


def test_they_are_what_the_models_make_of_them(prepare, model, parts, data):
  found = prepare()
  assert len(found) == 6
  assert found.stats["images"] == 10
  assert found.stats["captions"] == 2
  assert "1 not an image" in found.summary()
  assert [found.caption(i) for i in (0, 1)] == ["pair 1", "pair 0"]
  autoencoder = bind(model.definitions["vae"], parts["vae"])
  encode = jax.jit(autoencoder.encode)
  names = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 0]
  for j, name in enumerate(names):
    with Image.open(f"{data.path.rpartition('/')[0]}/{name}.png") as image:
      cut, sizes = fit_square(np.asarray(image), 16)
    moments = encode(jnp.asarray(cut[None] / 127.5 - 1.0, jnp.float32))
    latent = found.image(j)
    scaled = autoencoder.scale(moments.mean)[0]
    np.testing.assert_allclose(latent.mean, scaled, atol=1e-5)
    std = 0.18215 * np.exp(0.5 * np.array(moments.logvar[0]))
    np.testing.assert_allclose(latent.std, std, rtol=1e-4)
    np.testing.assert_array_equal(latent.sizes, sizes)
    assert sizes.tolist() == [16, 20, 0, 2, 16, 16]
  ids, _ = tokenize(model, ["", "pair 1"])
  ids = jax.tree.map(jnp.asarray, ids)
  context, _ = encode_text(model.definitions, parts, ids)
  for i, row in ((-1, 0), (0, 1)):
    np.testing.assert_allclose(found.text(i).context, context[row], atol=1e-5)


def test_stopped_half_way_it_goes_on(prepare):
  def stop(text):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare(stop)
  said = []
  found = prepare(said.append)
  assert said == ["Encoded 8 of 10 images.", "Encoded 10 of 10 images."]
  stored = {file.name: file.read_bytes() for file in found.encoded.iterdir()}
  assert len(stored) == 4  # three of images, one of captions
  assert prepare(said.append).encoded == found.encoded
  assert len(said) == 2
  for file in found.encoded.iterdir():
    file.unlink()
  again = prepare()
  assert again.encoded == found.encoded
  for j in range(12):
    for one, two in zip(found.image(j), again.image(j), strict=True):
      np.testing.assert_array_equal(one, two)


def test_too_many_broken_images(prepare, data):
  object.__setattr__(data, "max_rejected", 0.0)
  with pytest.raises(UserError, match=r"pairs\.jsonl:1: .*broken\.png"):
    prepare()
