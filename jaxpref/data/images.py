"""Prepared images: latents and texts, encoded once, before training.

Two caches. The index says who is compared with whom, and depends on the data
alone; the encodings, in the files of `numbered`, depend on the autoencoder, the
text encoders and the size as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
from jaxtyping import Float32
import numpy as np
import safetensors.numpy

from jaxpref import config, sharding
from jaxpref.data import formats, numbered, read
from jaxpref.data.aspect import Size, aspect_shapes, fit
from jaxpref.data.image_index import (
  RULES_VERSION,
  IndexedImages,
  find_index,
  read_images,
)
from jaxpref.data.pictures import decode
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.models.sdxl.image_model import ImageModel, tell_of_cuts, tokenize
from jaxpref.models.sdxl.pipeline import (
  StoredParts,
  encode_images,
  encode_text,
  encoders,
)
from jaxpref.models.source import folder_digest
from jaxpref.types import Image, ImageBatch, Params


class Latent(NamedTuple):
  """The posterior of an image, scaled as the UNet was trained on."""

  mean: Float32[np.ndarray, "y x c"]
  std: Float32[np.ndarray, "y x c"]
  sizes: Float32[np.ndarray, "6"]  # see `aspect.fit`


class Text(NamedTuple):
  """A caption, as the UNet is told it."""

  context: Float32[np.ndarray, "tokens D"]
  pooled: Float32[np.ndarray, " P"]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImages(IndexedImages):
  """Images as latents, and captions as the UNet is told them."""

  encoded: pathlib.Path = pathlib.Path()

  batch = ImageBatch

  def image(self, j: int | np.integer, *, mirrored: bool = False) -> Latent:
    """Of response j."""
    kind = "mirrored" if mirrored else "images"
    return Latent(**self._load(kind, self.cut_number(j)))

  def text(self, i: int | np.integer) -> Text:
    """Of example i's caption; that of the empty caption for -1."""
    number = -1 if i == -1 else self.caption_number(i)
    return Text(**self._load("captions", number + 1))

  @functools.cached_property
  def fingerprint(self) -> str:
    return encoded_fingerprint(super().fingerprint, self.encoded.name)

  def _load(self, kind: str, number: int) -> dict[str, np.ndarray]:
    texts = 1 + len(self.listed["captions"])
    count = texts if kind == "captions" else len(self.cuts)
    stored = numbered.stored(self.encoded, kind, count)
    return safetensors.numpy.load(stored[number])


def prepare_images(
  data: config.Data,
  path: str,
  model: ImageModel,
  say: Callable[[str], None],
  cache_dir: pathlib.Path | None = None,
) -> PreparedImages:
  """The encoded examples of `path`, made now or found in the cache.

  In a run of several processes all must call it; each encodes its share.

  Args:
    data: format, resolution, aspect_buckets, max_rejected, and whether any are
      mirrored.
    path: as data.path or data.eval_path; see `source.source_files`.
    model: whose autoencoder and text encoders are used, in float32: the
      autoencoder of SDXL overflows in 16 bits.
    say: is told how far it is.
    cache_dir: where preparations are; by default $JAXPREF_CACHE, or
      ~/.cache/jaxpref, and there `prepared`.

  Raises UserError for files that cannot be read, more refused rows than
  data.max_rejected, nothing left to use, or shapes that cannot be.
  """
  formats.check_format(data.format)
  shapes = image_shapes(data, model)
  files = read.source_files(path)
  root = cache_dir or config.cache_folder() / "prepared"
  index = find_index(data, path, files, root)
  folder = root / "encoded" / encoding_key(index, model, shapes)
  found = PreparedImages(index.folder, shapes=shapes, encoded=folder)
  numbered.fill(
    functools.partial(encode_missing, found, files, data, model, say)
  )
  tell_of_cut_captions(found, model, root, folder.name, say)
  return found


def tell_of_cut_captions(
  data: IndexedImages,
  model: ImageModel,
  root: pathlib.Path,
  key: str,
  say: Callable[[str], None],
) -> None:
  """Says how many captions the model reads a part of.

  They are counted once, which takes seconds where there are many, and the count
  is kept below `root` by their `encoding_key`.
  """
  if jax.process_index():
    return
  file = root / "cut_captions" / f"{key}.json"
  if not file.exists():
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
      _, count = tokenize(model, data.listed["captions"])
      partial.write_text(json.dumps(count))
  count = json.loads(file.read_text())
  if told := tell_of_cuts(count, model, "different captions"):
    say(told)


def image_shapes(data: config.Data, model: ImageModel) -> tuple[Size, ...]:
  """What images are cut to. Raises UserError for what cannot be."""
  side = resolution(data, model)
  return aspect_shapes(side, data.aspect_buckets, model.factor)


def resolution(data: config.Data, model: ImageModel) -> int:
  """Pixels of the square's side; UserError where latents would not be whole."""
  unet, factor = model.definitions["unet"].config, model.factor
  side = data.resolution or factor * (unet.sample_size or 64)
  if side % factor:
    below = side // factor * factor
    raise UserError(
      f"config.data.resolution is {side}; it must be a multiple of {factor}, "
      f"such as {below or factor} or {below + factor}."
    )
  return side


def encoding_key(
  index: IndexedImages, model: ImageModel, shapes: Sequence[Size]
) -> str:
  """A digest of all that they depend on; without shapes, of texts alone."""
  weights = {
    name: folder_digest(str(model.pipeline.folder / name), "config.json")
    for name in encoders(model.definitions)
    if shapes or name != "vae"
  }
  size = {"side": shapes[0][0]} if len(shapes) == 1 else {"shapes": shapes}
  key = {"rules": RULES_VERSION, **index.contents, **size, "model": weights}
  return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def encoded_fingerprint(examples: str, key: str) -> str:
  """Of some examples, given theirs and that of what they are encoded by."""
  return hashlib.sha256(json.dumps([examples, key]).encode()).hexdigest()


def encode_missing(
  data: PreparedImages,
  files: Sequence[read.Source],
  settings: config.Data,
  model: ImageModel,
  say: Callable[[str], None],
  shared: bool,
) -> None:
  """Writes what is not written yet, `shared` as of `numbered.missing`."""
  folder, per_file = data.encoded, numbered.PER_FILE
  folder.mkdir(parents=True, exist_ok=True)
  captions = ["", *data.listed["captions"]]
  mine = functools.partial(numbered.missing, folder, shared=shared)
  kinds = ("images", "mirrored") if settings.flip else ("images",)
  image_files = {kind: mine(kind, len(data.cuts)) for kind in kinds}
  caption_files = mine("captions", len(captions))
  asks_images = any(image_files.values())
  if not (asks_images or caption_files):
    return
  mesh = sharding.make_mesh(-1, 1, 1, jax.local_devices())
  with jax.set_mesh(mesh):
    params = _load(model, mesh, images=asks_images)
    write_texts = _text_encoder(model, params)
    for number in caption_files:
      texts = captions[number * per_file : (number + 1) * per_file]
      entries = map(_bytes, write_texts(texts))
      numbered.write(folder, "captions", number, entries)
    if not asks_images:
      return
    encode = _image_encoder(model, params)
    stream = _cuts(data, files, settings.format)
    for number, group in itertools.groupby(
      enumerate(stream), lambda item: item[0] // per_file
    ):
      asked = [kind for kind in kinds if number in image_files[kind]]
      here = [cut for _, cut in group] if asked else []
      for kind in asked:
        entries = map(_bytes, encode(here, kind == "mirrored"))
        numbered.write(folder, kind, number, entries)
      if asked:
        done = min((number + 1) * per_file, len(data.cuts))
        say(f"Encoded {done:,} of {len(data.cuts):,} images.")


def _cuts(
  data: PreparedImages, files: Sequence[read.Source], name: str
) -> Iterator[tuple[Image, Size]]:
  """Each image with each shape it is cut to, as `data.cuts` numbers them."""
  images = read_images(files, name, data.listed["images"])
  numbers = itertools.groupby(data.cuts.tolist(), lambda cut: cut[0])
  for image, (_, cuts) in zip(images, numbers, strict=True):
    yield from ((image, data.shapes[bucket]) for _, bucket in cuts)


def _bytes(entry: Latent | Text) -> bytes:
  return safetensors.numpy.save(entry._asdict())


def _load(
  model: ImageModel, mesh: jax.sharding.Mesh, *, images: bool
) -> dict[str, Params]:
  """The weights of what encodes texts and `images`, on every device."""
  everywhere = sharding.replicated(mesh)
  places = {
    name: jax.tree.map(lambda _: everywhere, each.shapes)
    for name, each in encoders(model.definitions).items()
    if images or name != "vae"
  }
  parts = StoredParts(model.pipeline, places)
  return {name: parts[name] for name in places}


def _image_encoder(
  model: ImageModel, params: Mapping[str, Params]
) -> Callable[[Sequence[tuple[Image, Size]], bool], Iterator[Latent]]:
  """One image a device at a time, so that the batch changes no bit."""

  @jax.jit
  def program(params: Mapping[str, Params], pixels: Any) -> tuple[Any, Any]:
    spread = sharding.constrain(pixels, ("batch", None, None, None))
    return encode_images(model.definitions, params, spread)

  def encode_alike(
    cuts: Sequence[tuple[Image, Size]], shape: Size, mirrored: bool
  ) -> Iterator[Latent]:
    images = (image for image, each in cuts if each == shape)
    for batch in _batches(images, sharding.shards("batch")):
      fitted = [fit(decode(image), shape, mirrored=mirrored) for image in batch]
      pixels = _filled([pixels for pixels, _ in fitted])
      mean, std = jax.device_get(program(params, pixels))
      for k, (_, sizes) in enumerate(fitted):
        yield Latent(mean[k], std[k], sizes)

  def encode(
    cuts: Sequence[tuple[Image, Size]], mirrored: bool
  ) -> Iterator[Latent]:
    """In their order, though those of a shape are encoded together."""
    shapes = {shape for _, shape in cuts}
    alike = {shape: encode_alike(cuts, shape, mirrored) for shape in shapes}
    return (next(alike[shape]) for _, shape in cuts)

  return encode


def _text_encoder(
  model: ImageModel, params: Mapping[str, Params]
) -> Callable[[Sequence[str]], Iterator[Text]]:
  program = jax.jit(functools.partial(encode_text, model.definitions))

  def encode(captions: Sequence[str]) -> Iterator[Text]:
    for batch in _batches(iter(captions), sharding.shards("batch")):
      ids, _ = tokenize(model, batch)
      filled = {name: _filled(list(rows)) for name, rows in ids.items()}
      states = jax.device_get(program(params, filled))
      context, pooled = (np.asarray(x, np.float32) for x in states)
      for k in range(len(batch)):
        yield Text(context[k], pooled[k])

  return encode


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
  while batch := list(itertools.islice(items, size)):
    yield batch


def _filled(rows: list[np.ndarray]) -> np.ndarray:
  """A row for every device, the last ones filled up by the first again."""
  size = sharding.shards("batch")
  return np.stack([rows[k % len(rows)] for k in range(size)])
