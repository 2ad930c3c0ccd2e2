"""Writes a small file of each public schema of image preferences.

pyarrow, json and `datasets` write them, Pillow their images, of a color each.
Columns and types are those of the published files.

    python tests/data/schemas/make_image_schemas.py FOLDER
"""

import datetime
import io
import json
import pathlib
import struct
import sys
from typing import Any
import zlib

from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pyarrow.csv

S, F64, I64, BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
STRUCT = pa.struct({"bytes": pa.binary(), "path": S})
COLORS = ("red", "lime", "blue", "black")


def encoded(color: str, kind: str = "PNG") -> bytes:
  """An image 8 pixels wide and 6 high."""
  Image.new("RGB", (8, 6), color).save(file := io.BytesIO(), kind)
  return file.getvalue()


def bomb(width: int, height: int) -> bytes:
  """A PNG of a few bytes that says it is as large as that."""

  def chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", b""), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


RED, LIME, BLUE, BLACK = (encoded(color) for color in COLORS)
JPEG = encoded("red", "JPEG")

_PICK: dict[str, pa.DataType] = {
  "are_different": BOOL,
  "best_image_uid": S,
  "caption": S,
  "created_at": pa.timestamp("ns"),
  "has_label": BOOL,
  **dict.fromkeys(
    ("image_0_uid", "image_0_url", "image_1_uid", "image_1_url"), S
  ),
  "jpg_0": pa.binary(),
  "jpg_1": pa.binary(),
  "label_0": F64,
  "label_1": F64,
  "model_0": S,
  "model_1": S,
  **dict.fromkeys(("ranking_id", "user_id", "num_example_per_prompt"), I64),
  "__index_level_0__": I64,
}
_CONTENT = pa.struct({"image": STRUCT})

# Of what is written as Parquet.
SCHEMAS: dict[str, dict[str, pa.DataType]] = {
  "pickapic": _PICK,
  "pickapic_no_images": {
    name: kind for name, kind in _PICK.items() if kind != pa.binary()
  },
  "ranked_structs": {
    "prompt": S,
    "images": pa.list_(STRUCT),
    "scores": pa.struct(
      {"aesthetic": pa.list_(F64), "alignment": pa.list_(F64)}
    ),
  },
  "pair_structs": {
    "prompt": S,
    "chosen": STRUCT,
    "rejected": STRUCT,
    "score_chosen": F64,
    "score_rejected": F64,
  },
  "pair_bytes": {"prompt": S, "chosen": pa.binary(), "rejected": pa.binary()},
  "pair_paths": {"prompt": S, "chosen": S, "rejected": S},
  "videofeedback": {
    "id": S,
    "images": pa.list_(S),
    "text prompt": S,
    "video link": S,
    **dict.fromkeys(
      (
        "visual quality",
        "temporal consistency",
        "dynamic degree",
        "text-to-video alignment",
        "factual consistency",
      ),
      I64,
    ),
    "conversations": pa.list_(pa.struct({"from": S, "value": S})),
  },
  # Rows of DiffusionDB's metadata, and the like.
  "prompts": {"prompt": S, "seed": pa.uint32(), "step": pa.uint16()},
  "record": {
    "prompt": S,
    "responses": pa.list_(
      pa.struct({"content": _CONTENT, "scores": pa.struct({"x": F64})})
    ),
    "comparisons": pa.list_(
      pa.struct({"better": I64, "worse": I64, "preference": F64})
    ),
  },
}


def _pick(first: bytes, second: bytes, *labels: float) -> dict[str, Any]:
  return {
    "are_different": True,
    "best_image_uid": "u0" if labels and labels[0] == 1 else "u1",
    "caption": "a cat",
    "created_at": datetime.datetime(2022, 11, 10),
    "has_label": bool(labels),
    **{f"image_{i}_{what}": f"{what}{i}" for i in (0, 1)
       for what in ("uid", "url")},
    "jpg_0": first,
    "jpg_1": second,
    **{f"label_{i}": label for i, label in enumerate(labels)},
    "model_0": "xl",
    "model_1": "dreamlike",
    "ranking_id": 1,
    "user_id": 2,
    "num_example_per_prompt": 3,
    "__index_level_0__": 4,
  }  # fmt: skip


def _struct(data: bytes | None, path: str | None) -> dict[str, Any]:
  return {"bytes": data, "path": path}


def _compared(**said: str) -> dict[str, Any]:
  return {
    "path_A": "videos/red.mp4",
    "path_B": "videos/lime.mp4",
    "A_model": "gen2",
    "B_model": "pika",
    "prompt": "a cat",
    **dict.fromkeys(("VQ", "MQ", "TA", "Overall"), "same"),
    "fps_A": 8,
    "fps_B": 8,
    "num_frames_A": 5,
    "num_frames_B": 5,
    **said,
  }


def _seen(number: int, prompt: str, color: str, rated: int) -> dict[str, Any]:
  return {
    "id": str(number),
    "images": [f"images/{each}.png" for each in ("red", color, "blue")],
    "text prompt": prompt,
    "video link": f"https://example.org/{number}.mp4",
    "visual quality": rated,
    "temporal consistency": 2,
    "dynamic degree": 3,
    "text-to-video alignment": 4,
    "factual consistency": 1,
    "conversations": [{"from": "human", "value": "Rate this."}],
  }


def _vote(*rank: int) -> dict[str, Any]:
  return {"rank": list(rank), "user_hash": "a"}


ROWS: dict[str, list[dict[str, Any]]] = {
  "pickapic": [
    _pick(JPEG, LIME, 1.0, 0.0),
    _pick(JPEG, LIME, 0.0, 1.0),
    _pick(JPEG, LIME, 0.5, 0.5),
    _pick(JPEG, LIME),
  ],
  "pickapic_no_images": [_pick(JPEG, LIME, 1.0, 0.0)],
  "ranked_structs": [
    {
      "prompt": "a cat",
      "images": [_struct(RED, "0.png"), _struct(None, "images/lime.png")],
      "scores": {"aesthetic": [5.0, 6.5], "alignment": [1.0, 0.0]},
    }
  ],
  "pair_structs": [
    {
      "prompt": "a cat",
      "chosen": _struct(RED, None),
      "rejected": _struct(LIME, "elsewhere/1.png"),
      "score_chosen": 2.0,
      "score_rejected": 1.0,
    }
  ],
  "pair_bytes": [{"prompt": "a cat", "chosen": RED, "rejected": LIME}],
  "pair_paths": [
    {
      "prompt": "a cat",
      "chosen": "images/red.png",
      "rejected": "https://example.org/lime.PNG?size=8",
    }
  ],
  "record": [
    {
      "prompt": "a cat",
      "responses": [
        {"content": {"image": _struct(RED, None)}, "scores": {"x": 1.0}},
        {"content": {"image": _struct(None, "images/lime.png")},
         "scores": {"x": 3.0}},
      ],
      "comparisons": [{"better": 1, "worse": 0, "preference": 0.75}],
    }
  ],
  "videofeedback": [
    _seen(1, "a cat", "lime", 3),
    _seen(2, "a cat", "black", 1),
    _seen(3, "a dog", "lime", 2),
  ],
  "videoalign": [
    _compared(VQ="A", MQ="B", Overall="B"),
    _compared(TA="invalid"),
    _compared(Overall="invalid", VQ="B"),
  ],
  "prompts": [
    {"prompt": prompt, "seed": 7, "step": 50} for prompt in ("a cat", "a dog")
  ],
  # Lists in JSON.
  # PSO's released list for training: a caption, and where Pick-a-Pic has it.
  "captions": [
    {"caption": caption, "trainset_idx": number}
    for number, caption in enumerate(("a cat", "a dog"))
  ],
  "hpdv2_train": [
    {
      "human_preference": chosen,
      "prompt": "a cat",
      "file_path": ["images/red.png", "images/lime.png"],
    }
    for chosen in ([1, 0], [0, 1], [1, 1])
  ],
  "hpdv2_test": [
    {
      "prompt": "a cat",
      "image_path": [f"images/{c}.png" for c in ("red", "lime", "blue")],
      "rank": [2, 1, 3],
      "raw_annotations": [_vote(2, 1, 3), _vote(1, 2, 3), _vote(2, 1, 3),
                          _vote(2, 1, 1)],
    }
  ],
  "imagereward": [
    {
      "id": "1-1",
      "prompt": "a cat",
      "generations": ["images/red.png", "images/lime.png"],
      "ranking": [2, 1],
    }
  ],
  "record_json": [
    {
      "prompt": "a cat",
      "responses": [
        {"content": {"image": "images/red.png"}},
        {"content": {"image": {"path": "images/lime.png"}}},
      ],
    }
  ],
}  # fmt: skip


def write(folder: pathlib.Path, name: str) -> pathlib.Path:
  """The file of a schema, beside the images that it may name."""
  (images := folder / "images").mkdir(exist_ok=True)
  for color in COLORS:
    (images / f"{color}.png").write_bytes(encoded(color))
  if name in SCHEMAS:
    table = pa.Table.from_pylist(ROWS[name], pa.schema(SCHEMAS[name]))
    parquet.write_table(table, file := folder / f"{name}.parquet")
  elif name == "videoalign":
    table = pa.Table.from_pylist(ROWS[name])
    pyarrow.csv.write_csv(table, file := folder / f"{name}.csv")
  else:
    (file := folder / f"{name}.json").write_text(json.dumps(ROWS[name]))
  return file


def write_datasets(folder: pathlib.Path) -> pathlib.Path:
  """A pair as `datasets` saves images: structs, bytes inside or a path."""
  import datasets

  features = {"prompt": datasets.Value("string")}
  features |= dict.fromkeys(("chosen", "rejected"), datasets.Image())
  row = {
    "prompt": "a cat",
    "chosen": Image.new("RGB", (8, 6), "red"),
    "rejected": {"bytes": LIME, "path": None},
  }
  saved = datasets.Dataset.from_list([row], datasets.Features(features))
  saved.save_to_disk(str(folder / "saved"))
  return folder / "saved"


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  folder.mkdir(parents=True, exist_ok=True)
  for name in ROWS:
    print(write(folder, name))


if __name__ == "__main__":
  main()
