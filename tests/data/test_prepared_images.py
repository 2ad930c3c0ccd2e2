"""Images and captions encoded before training, or ready for it: what, and how
often."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxpref import config
from jaxpref.data import numbered
from jaxpref.data.aspect import fit
from jaxpref.data.images import prepare_images
from jaxpref.data.pixels import prepare_pixels
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
  """prepare(say) -> the images, four to a file; flip=0.5 mirrors some."""
  monkeypatch.setattr(numbered, "PER_FILE", 4)

  def call(say=lambda text: None, how=prepare_images, **changed):
    settings = dataclasses.replace(data, **changed)
    return how(settings, settings.path, model, say, tmp_path / "cache")

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
      cut, sizes = fit(np.asarray(image), (16, 16))
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


def test_mirrored_latents_are_added_where_they_are_asked_for(
  prepare, model, parts, data
):
  prepare()
  said = []
  found = prepare(said.append, flip=0.5)
  assert said[-1] == "Encoded 10 of 10 images."
  names = sorted(file.name for file in found.encoded.iterdir())
  assert [name.partition("-")[0] for name in names] == (
    ["captions"] + 3 * ["images"] + 3 * ["mirrored"]
  )
  autoencoder = bind(model.definitions["vae"], parts["vae"])
  with Image.open(f"{data.path.rpartition('/')[0]}/1.png") as image:
    cut, _ = fit(np.asarray(image), (16, 16))
  mirror = jnp.asarray(cut[None, :, ::-1] / 127.5 - 1.0, jnp.float32)
  moments = jax.jit(autoencoder.encode)(mirror)
  mean = found.image(1, mirrored=True).mean
  np.testing.assert_allclose(
    mean, autoencoder.scale(moments.mean)[0], atol=1e-5
  )
  assert np.abs(mean - found.image(1).mean).max() > 1e-2
  # The autoencoder pads on one side: a latent that is mirrored is another one.
  assert np.abs(mean - found.image(1).mean[:, ::-1]).max() > 1e-2


def test_pixels_and_ids(prepare, model, data):
  """Whichever thread asks for them."""
  found, encoded = prepare(how=prepare_pixels), prepare()
  assert found.fingerprint == encoded.fingerprint
  assert found.select([1]).fingerprint != found.fingerprint
  assert found.summary() == encoded.summary()
  folder = data.path.rpartition("/")[0]
  names = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 0]
  cuts = []
  for name in names:
    with Image.open(f"{folder}/{name}.png") as image:
      cuts.append(fit(np.asarray(image), (16, 16)))
  for j, (cut, sizes) in enumerate(cuts):
    shown = found.image(j)
    np.testing.assert_array_equal(shown.pixels, cut)
    np.testing.assert_array_equal(shown.sizes, sizes)
    mirrored = found.image(j, mirrored=True)
    np.testing.assert_array_equal(mirrored.pixels, cut[:, ::-1])
  ids, _ = tokenize(model, ["", "pair 1", "pair 0"])
  asked = [-1, 0, 1] * 50
  with ThreadPoolExecutor(4) as threads:
    told = [*threads.map(lambda i: found.text(i).ids, asked)]
  for i, each in zip(asked, told, strict=True):
    for name, rows in ids.items():
      np.testing.assert_array_equal(each[name], rows[i + 1])


def test_copying_goes_on_where_it_stopped(prepare, tmp_path):
  def stop(text):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare(stop, prepare_pixels)
  said = []
  found = prepare(said.append, prepare_pixels)
  assert said == ["Copied 8 of 10 images.", "Copied 10 of 10 images."]
  for file in tmp_path.glob("*.png"):  # no run needs them any more
    file.unlink()
  assert prepare(said.append, prepare_pixels).copied == found.copied
  assert len(said) == 2
  assert found.image(11).pixels.shape == (16, 16, 3)
  other = prepare(said.append, prepare_pixels, resolution=8)
  assert len(said) == 2  # the same copies do for any size
  assert other.image(11).pixels.shape == (8, 8, 3)
  assert other.fingerprint != found.fingerprint


def test_too_many_broken_images(prepare, data):
  object.__setattr__(data, "max_rejected", 0.0)
  with pytest.raises(UserError, match=r"pairs\.jsonl:1: .*broken\.png"):
    prepare()


@pytest.fixture
def mixed(tmp_path):
  """Tall, square and wide images, some of which two prompts share."""
  rng = np.random.default_rng(1)
  sizes = [(40, 20), (48, 20), (16, 16), (20, 20), (18, 40), (20, 44)]
  for name, size in enumerate(sizes):
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"m{name}.png")
  # 2.4:1 beside 1:1 is 1.55:1 in the mean, nearer to 22:12 than to 1:1.
  groups = [(0, 1), (2, 3), (4, 5), (1, 2), (0, 4), (3, 5, 4), (2, 3, 2)]
  rows = [
    {
      "prompt": f"row {i}",
      "responses": [{"content": {"image": f"m{k}.png"}} for k in group],
      "comparisons": [{"better": 0, "worse": 1}],
    }
    for i, group in enumerate(groups)
  ]
  path = tmp_path / "mixed.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return {"path": str(path), "aspect_buckets": 3}, groups


def test_images_are_cut_to_their_prompt_s_shape(
  prepare, mixed, model, parts, tmp_path
):
  """One image, where two prompts have it, to two shapes."""
  given, groups = mixed
  said = []
  found = prepare(said.append, **given, flip=0.5)
  assert found.shapes == ((22, 12), (16, 16), (12, 22))
  assert found.bucket.tolist() == [0, 1, 2, 0, 1, 2, 1]
  told = "images: 2 of 22 x 12, 3 of 16 x 16, 2 of 12 x 22."
  assert found.summary().endswith(told)
  # By image and shape; four to a file.
  cuts = [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [3, 1], [3, 2], [4, 1]]
  assert found.cuts.tolist() == [*cuts, [4, 2], [5, 2]]
  assert said[-1] == "Encoded 10 of 10 images."
  pixels = prepare(how=prepare_pixels, **given)
  assert pixels.fingerprint == found.fingerprint
  autoencoder = bind(model.definitions["vae"], parts["vae"])
  encode = jax.jit(autoencoder.encode)
  names = [name for group in groups for name in group]
  owner = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
  for j, (name, i) in enumerate(zip(names, owner, strict=True)):
    shape = found.shapes[found.bucket[i]]
    with Image.open(tmp_path / f"m{name}.png") as image:
      for mirrored in (False, True):
        cut, sizes = fit(np.asarray(image), shape, mirrored=mirrored)
        latent = found.image(j, mirrored=mirrored)
        shown = pixels.image(j, mirrored=mirrored)
        np.testing.assert_array_equal(shown.pixels, cut)
        np.testing.assert_array_equal(shown.sizes, sizes)
        np.testing.assert_array_equal(latent.sizes, sizes)
        moments = encode(jnp.asarray(cut[None] / 127.5 - 1.0, jnp.float32))
        scaled = autoencoder.scale(moments.mean)[0]
        assert latent.mean.shape == (shape[0] // 2, shape[1] // 2, 4)
        np.testing.assert_allclose(latent.mean, scaled, atol=1e-5)
  # Of any choice of examples it is the same.
  some = found.select([5, 0])
  assert some.bucket.tolist() == [2, 0]
  for j, whole in enumerate([10, 11, 12, 0, 1]):
    np.testing.assert_array_equal(some.image(j).mean, found.image(whole).mean)


def test_one_shape_is_cached_as_ever(prepare, mixed):
  """Whether or not another number was asked for before."""
  given, _ = mixed
  square = prepare(**given | {"aspect_buckets": 1})
  assert square.cuts.tolist() == [[k, 0] for k in range(6)]
  several = prepare(**given)
  assert len({square.encoded, several.encoded, square.folder}) == 3
  assert several.folder != square.folder  # which knows no sizes, if it is old
  (square.folder / "sizes.json").unlink()
  said = []
  again = prepare(said.append, **given | {"aspect_buckets": 1})
  assert not said
  assert again.encoded == square.encoded
  assert again.image(0).mean.shape == (8, 8, 4)
  others = prepare(said.append, **given | {"aspect_buckets": 5})
  assert said[-1].startswith("Encoded")
  assert others.encoded != several.encoded
