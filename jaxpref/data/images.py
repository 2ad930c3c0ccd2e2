"""Prepared images: latents and texts, encoded once, before training.

Two caches. The index says who is compared with whom, and depends on the data
alone; the encodings depend on the autoencoder, the text encoders and the size
as well. They lie in ArrayRecord files of a fixed number of images or captions
each, which get their names when they are whole: a preparation that was stopped
goes on with the next file, and processes share the files out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from typing import Any, NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
import jax
import jax.numpy as jnp
from jaxtyping import Float32, UInt8
import numpy as np
from PIL import Image as Pillow
import safetensors.numpy

from jaxpref import config, sharding
from jaxpref.data import formats, read
from jaxpref.data.cache import Prepared
from jaxpref.data.image_index import LISTED, read_images, write_index
from jaxpref.data.pictures import decode
from jaxpref.data.prepared import check_refusals, find_folder
from jaxpref.errors import UserError
from jaxpref.files import replacing
from jaxpref.models.build import bind
from jaxpref.models.sdxl.image_model import ImageModel, tokenize
from jaxpref.models.sdxl.pipeline import ENCODERS, StoredParts, encode_text
from jaxpref.models.source import folder_digest
from jaxpref.types import Image, Params

RULES_VERSION = 1  # of reading, resizing and encoding; part of the keys
_PER_FILE = 256  # images, or captions


class Latent(NamedTuple):
  """The posterior of an image, scaled as the UNet was trained on."""

  mean: Float32[np.ndarray, "y x c"]
  std: Float32[np.ndarray, "y x c"]
  sizes: Float32[np.ndarray, "6"]  # see `fit_square`


class Text(NamedTuple):
  """A caption, as the UNet is told it."""

  context: Float32[np.ndarray, "tokens D"]
  pooled: Float32[np.ndarray, " P"]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImages(Prepared):
  """Examples whose responses are images and whose prompts are captions."""

  encoded: pathlib.Path = pathlib.Path()

  def latent(self, j: int | np.integer) -> Latent:
    """Of response j."""
    return Latent(**self._load("images", int(self.response(j)[0])))

  def text(self, i: int | np.integer) -> Text:
    """Of example i's caption; that of the empty caption for -1."""
    number = -1 if i == -1 else int(self.prompt(i)[0])
    return Text(**self._load("captions", number + 1))

  def caption(self, i: int | np.integer) -> str:
    """What example i's images show."""
    return self._listed["captions"][int(self.prompt(i)[0])]

  @functools.cached_property
  def latent_shape(self) -> tuple[int, ...]:
    """Y, X and C of every latent."""
    return self.latent(0).mean.shape

  @functools.cached_property
  def fingerprint(self) -> str:
    parts = super().fingerprint, self.encoded.name
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  def summary(self) -> str:
    """What was read and refused, in a few lines."""
    stats, files = self.stats, self._manifest["files"]
    names = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    refused = ", ".join(f"{n:,} {kind}" for kind, n in stats["refused"].items())
    return (
      f"{names}: {stats['rows']:,} rows, {refused or 'none'} refused; "
      f"{stats['examples']:,} examples with {stats['responses']:,} images, "
      f"{stats['images']:,} of them different, of {stats['captions']:,} "
      f"captions.\n{self._manifest['formats']}"
    )

  def _load(self, kind: str, number: int) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(self._records(kind)[number])

  @functools.cached_property
  def _listed(self) -> Mapping[str, list[str]]:
    return json.loads((self.folder / LISTED).read_text())

  def _records(self, kind: str) -> ArrayRecordDataSource:
    return _open(tuple(map(str, sorted(self.encoded.glob(f"{kind}-*")))))


@functools.cache
def _open(files: tuple[str, ...]) -> ArrayRecordDataSource:
  return ArrayRecordDataSource(files)


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
    data: format, resolution and max_rejected.
    path: as data.path or data.eval_path; see `source.source_files`.
    model: whose autoencoder and text encoders are used, in float32: the
      autoencoder of SDXL overflows in 16 bits.
    say: is told how far it is.
    cache_dir: where preparations are; by default $JAXPREF_CACHE, or
      ~/.cache/jaxpref, and there `prepared`.

  Raises UserError for files that cannot be read, more refused rows than
  data.max_rejected, nothing left to use, or a resolution that cannot be.
  """
  formats.check_format(data.format)
  side = resolution(data, model)
  files = read.source_files(path)
  depends = {
    "images": RULES_VERSION,
    "files": {file.name: file.digest() for file in files},
    "format": data.format,
  }
  root = cache_dir or config.cache_folder() / "prepared"
  folder = find_folder(
    depends, lambda folder: write_index(folder, files, data, depends), root
  )
  index = PreparedImages(folder)
  check_refusals(index, data, path)
  if not len(index):
    raise UserError(f"{path}: no example is left of its rows.")
  key = {
    "index": index.fingerprint,
    "listed": hashlib.sha256((folder / LISTED).read_bytes()).hexdigest(),
    "side": side,
    "model": identity(model),
  }
  name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
  found = dataclasses.replace(index, encoded=root / "encoded" / name)
  _encode(found, files, data.format, model, side, say)
  return found


def resolution(data: config.Data, model: ImageModel) -> int:
  """Pixels of a side. Raises UserError where latents would not be whole."""
  unet, factor = model.definitions["unet"].config, model.factor
  side = data.resolution or factor * (unet.sample_size or 64)
  if side % factor:
    below = side // factor * factor
    raise UserError(
      f"config.data.resolution is {side}; it must be a multiple of {factor}, "
      f"such as {below or factor} or {below + factor}."
    )
  return side


def identity(model: ImageModel) -> dict[str, str]:
  """A digest of the weights of each part that encodes."""
  folder = model.pipeline.folder
  return {
    name: folder_digest(str(folder / name), "config.json")
    for name in ("vae", *ENCODERS)
    if name in model.definitions
  }


def fit_square(
  pixels: UInt8[np.ndarray, "Y X 3"], side: int
) -> tuple[UInt8[np.ndarray, "side side 3"], Float32[np.ndarray, "6"]]:
  """Scales the shorter side to `side` pixels and cuts the middle out.

  Returns: the pixels, and SDXL's conditions: height and width as they were,
  the cut's top and left after scaling, height and width as they are.

  Reference: Podell et al. 2023, section 2.2 (https://arxiv.org/abs/2307.01952).
  """
  height, width = pixels.shape[:2]
  scale = side / min(height, width)
  size = max(side, round(width * scale)), max(side, round(height * scale))
  image = Pillow.fromarray(pixels)
  if image.size != size:
    image = image.resize(size, Pillow.Resampling.BILINEAR)
  left, top = (size[0] - side) // 2, (size[1] - side) // 2
  cut = np.asarray(image.crop((left, top, left + side, top + side)))
  told = np.array([height, width, top, left, side, side], np.float32)
  return cut, told


def _encode(
  data: PreparedImages,
  files: Sequence[read.Source],
  name: str,
  model: ImageModel,
  side: int,
  say: Callable[[str], None],
) -> None:
  """Writes what is not written yet of this process's share."""
  data.encoded.mkdir(parents=True, exist_ok=True)
  listed = data._listed
  images, captions = listed["images"], ["", *listed["captions"]]
  mine = functools.partial(_missing, data.encoded)
  image_files = mine("images", len(images))
  caption_files = mine("captions", len(captions))
  if not (image_files or caption_files):
    _wait()
    return
  mesh = sharding.make_mesh(-1, 1, 1, jax.local_devices())
  with jax.set_mesh(mesh):
    params = _load(model, mesh)
    write_texts = _text_encoder(model, params)
    for number in caption_files:
      here = captions[number * _PER_FILE : (number + 1) * _PER_FILE]
      _write(data.encoded, "captions", number, write_texts(here))
    encode = _image_encoder(model, params, side)
    stream = enumerate(read_images(files, name, images))
    for number, group in itertools.groupby(
      stream, lambda item: item[0] // _PER_FILE
    ):
      if number in image_files:
        entries = encode(image for _, image in group)
        _write(data.encoded, "images", number, entries)
        done = min((number + 1) * _PER_FILE, len(images))
        say(f"Encoded {done:,} of {len(images):,} images.")
  _wait()


def _missing(folder: pathlib.Path, kind: str, count: int) -> list[int]:
  """Numbers of the files that this process has to write."""
  numbers = range(
    jax.process_index(), -(-count // _PER_FILE), jax.process_count()
  )
  return [n for n in numbers if not _file(folder, kind, n).exists()]


def _file(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
  return folder / f"{kind}-{number:06d}.array_record"


def _write(
  folder: pathlib.Path,
  kind: str,
  number: int,
  entries: Iterator[NamedTuple],
) -> None:
  with replacing(_file(folder, kind, number)) as partial:
    # Groups of one, so that any record is read by itself.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for entry in entries:
      writer.write(safetensors.numpy.save(entry._asdict()))
    writer.close()


def _load(model: ImageModel, mesh: jax.sharding.Mesh) -> dict[str, Params]:
  """The weights of the parts that encode, on every device."""
  everywhere = sharding.replicated(mesh)
  places = {
    name: jax.tree.map(lambda _: everywhere, model.definitions[name].shapes)
    for name in ("vae", *ENCODERS)
    if name in model.definitions
  }
  parts = StoredParts(model.pipeline, places)
  return {name: parts[name] for name in places}


def _image_encoder(
  model: ImageModel, params: Mapping[str, Params], side: int
) -> Callable[[Iterator[Image]], Iterator[Latent]]:
  """One image a device at a time, so that the batch changes no bit."""
  vae = model.definitions["vae"]

  @jax.jit
  def program(params: Params, pixels: Any) -> tuple[Any, Any]:
    spread = sharding.constrain(pixels, ("batch", None, None, None))
    autoencoder = bind(vae, params)
    moments = autoencoder.encode(spread.astype(jnp.float32) / 127.5 - 1.0)
    std = vae.config.scaling_factor * jnp.exp(0.5 * moments.logvar)
    return autoencoder.scale(moments.mean), std

  def encode(images: Iterator[Image]) -> Iterator[Latent]:
    for batch in _batches(images, sharding.shards("batch")):
      fitted = [fit_square(decode(image), side) for image in batch]
      pixels = _filled([pixels for pixels, _ in fitted])
      mean, std = jax.device_get(program(params["vae"], pixels))
      for k, (_, sizes) in enumerate(fitted):
        yield Latent(mean[k], std[k], sizes)

  return encode


def _text_encoder(
  model: ImageModel, params: Mapping[str, Params]
) -> Callable[[Sequence[str]], Iterator[Text]]:
  program = jax.jit(functools.partial(encode_text, model.pipeline))

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


def _wait() -> None:
  """Until all processes are here, and so all files there."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("jaxpref.images")
