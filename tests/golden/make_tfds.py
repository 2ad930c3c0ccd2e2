"""Writes tfds.json: what TFDS 4.9.10 stores of rows with every kind of column.

    pip install tensorflow-datasets==4.9.10  # TensorFlow is not needed
    python tests/golden/make_tfds.py

Its records are in base64, beside its features.json and what was stored.
"""

import base64
import io
import json
import pathlib
import tempfile

from array_record.python.array_record_module import ArrayRecordReader
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds


def encoded(color: str) -> bytes:
  Image.new("RGB", (8, 6), color).save(file := io.BytesIO(), "PNG")
  return file.getvalue()


RED, LIME = encoded("red"), encoded("lime")


def row(number: int) -> dict:
  return {
    "prompt": f"a cat, ünïcode {number}",
    "chosen": RED,
    "rejected": LIME,
    "images": [RED, LIME][:number],
    "scores": [0.5, -1.5],
    "axes": np.array([1, -2], np.int32),
    "turns": [
      {"role": "user", "content": "hi"},
      {"role": "assistant", "content": ""},
    ][:number],
    "meta": {"model": b"xl", "seed": -number, "sure": 0.25},
    "label": number == 1,
    "class": 1,
    "raw": RED,
    "grid": np.zeros((2, 2), np.float32),
  }


class Pairs(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  name = "pairs"

  def _info(self) -> tfds.core.DatasetInfo:
    f = tfds.features
    features = {
      "prompt": f.Text(),
      "chosen": f.Image(),
      "rejected": f.Image(),
      "images": f.Sequence(f.Image()),
      "scores": f.Sequence(np.float32),
      "axes": f.Tensor(shape=(2,), dtype=np.int32),
      "turns": f.Sequence({"role": f.Text(), "content": f.Text()}),
      "meta": {"model": np.str_, "seed": np.int64, "sure": np.float64},
      "label": np.bool_,
      "class": f.ClassLabel(names=["a", "b"]),
      "raw": np.object_,
      "grid": f.Tensor(shape=(2, 2), dtype=np.float32),
    }
    told = f.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=told)

  def _split_generators(self, manager: object) -> dict:
    return {"train": ((i, row(i)) for i in range(3))}

  def _generate_examples(self) -> None:
    """All is said where the splits are."""


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    builder = Pairs(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    (file,) = pathlib.Path(builder.data_dir).glob("*.array_record*")
    reader = ArrayRecordReader(str(file))
    records = reader.read(0, reader.num_records())
    features = json.loads((file.parent / "features.json").read_text())
  written = {
    "file": file.name,
    "features": features,
    "records": [base64.b64encode(each).decode() for each in records],
    "red": base64.b64encode(RED).decode(),
    "lime": base64.b64encode(LIME).decode(),
  }
  out = pathlib.Path(__file__).with_name("tfds.json")
  out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
  main()
