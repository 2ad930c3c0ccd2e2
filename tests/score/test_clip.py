"""CLIP's ratings of images against transformers and torch."""

import itertools
import json

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
import transformers

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.score.clip import ClipScorer, read_preparation

TEXTS = ["a photo of a cat", "two red foxes " * 40, ""]


@pytest.fixture(scope="module")
def images():
  """Wide, high and exactly as large as the model's, of smooth colors."""
  rng = np.random.default_rng(0)
  small = [rng.integers(0, 256, (5, 5, 3), np.uint8) for _ in range(3)]
  sizes = (40, 20), (15, 33), (12, 12)
  return [
    np.asarray(PIL.Image.fromarray(each).resize(size))
    for each, size in zip(small, sizes, strict=True)
  ]


def test_preparation_is_that_of_transformers(clip, images):
  _, folder, processor = clip
  prepare = read_preparation(folder)
  for image in images:
    theirs = processor(PIL.Image.fromarray(image), return_tensors="np")
    ours = prepare(image).transpose(2, 0, 1)
    # In steps of a level of 256, which is 0.015: theirs may be torch's filter.
    np.testing.assert_allclose(ours, theirs.pixel_values[0], atol=0.05)


def test_scores_are_those_of_transformers(clip, images):
  model, folder, _ = clip
  prepare = read_preparation(folder)
  pixels = np.stack([prepare(each) for each in images]).astype(np.float32)
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
  ids = tokenizer(
    TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt"
  )
  with torch.no_grad():
    whole = model(
      pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), **ids
    ).logits_per_image
  score = ClipScorer(str(folder))
  # 6e-6 was seen, of scores of up to 16.
  np.testing.assert_allclose(score(images, TEXTS), whole.diagonal(), atol=1e-4)
  other = score(images, TEXTS[::-1])
  assert np.abs(other - score(images, TEXTS))[[0, 2]].max() > 0.1
  # However many are rated at a time.
  many = score(images * 4, TEXTS * 4)
  np.testing.assert_array_equal(many[:3], score(images, TEXTS))
  np.testing.assert_allclose(many, np.tile(many[:3], 4), rtol=1e-6)
  # Within a run's mesh one device rates, as only one process may be asked to.
  with jax.set_mesh(sharding.make_mesh(2, 4, 1)):
    meshed = ClipScorer(str(folder))(images, TEXTS)
  np.testing.assert_array_equal(meshed, many[:3])


@pytest.fixture(scope="module")
def aesthetic(tmp_path_factory, vision, randomized, write_processor):
  """As the published conversion of LAION's predictor, with torch's layers."""
  folder = tmp_path_factory.mktemp("aesthetic")
  config = transformers.CLIPVisionConfig(**vision, projection_dim=6)
  tower = randomized(transformers.CLIPVisionModelWithProjection(config))
  sizes = (6, 8, 4, 3, 2, 1)
  linear = [torch.nn.Linear(*each) for each in itertools.pairwise(sizes)]
  numbers = (0, 2, 4, 6, 7)  # dropout stands between
  tensors = dict(tower.state_dict())
  for number, layer in zip(numbers, linear, strict=True):
    tensors[f"layers.{number}.weight"] = layer.weight.detach()
    tensors[f"layers.{number}.bias"] = layer.bias.detach()
  tensors = {name: each.contiguous() for name, each in tensors.items()}
  safetensors.torch.save_file(tensors, folder / "model.safetensors")
  given = config.to_dict() | {"architectures": ["AestheticsPredictorV2Linear"]}
  (folder / "config.json").write_text(json.dumps(given))
  write_processor(folder)
  return tower, torch.nn.Sequential(*linear), folder


def test_an_aesthetic_score_is_that_of_torch(aesthetic, images):
  tower, head, folder = aesthetic
  prepare = read_preparation(folder)
  pixels = np.stack([prepare(each) for each in images]).astype(np.float32)
  with torch.no_grad():
    vectors = tower(torch.tensor(pixels.transpose(0, 3, 1, 2))).image_embeds
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    expected = head(vectors)[:, 0]
  score = ClipScorer(str(folder))
  found = score(images, TEXTS)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(score(images, TEXTS[::-1]), found)


def _copy(folder, to):
  for path in folder.iterdir():
    (to / path.name).write_bytes(path.read_bytes())
  return to


def _edit(path, **changed):
  path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
  ("file", "changed", "told"),
  [
    ("config.json", {"architectures": ["BertModel"]}, "is .BertModel.; what r"),
    ("preprocessor_config.json", {"resample": 2}, "not CLIP's"),
    ("preprocessor_config.json", {"size": {"height": 12}}, "shortest_edge"),
    (
      "preprocessor_config.json",
      {"crop_size": {"height": 8, "width": 8}},
      "cuts images to 8 × 8 pixels, and config.json wants 12 × 12",
    ),
    ("config.json", {"projection_dim": 5}, "has the shape"),
  ],
)  # fmt: skip
def test_folders_that_cannot_be_used(clip, tmp_path, file, changed, told):
  folder = _copy(clip[1], tmp_path)
  _edit(folder / file, **changed)
  with pytest.raises(UserError, match=told):
    ClipScorer(str(folder))


def test_folders_that_are_not_whole(clip, tmp_path):
  folder = _copy(clip[1], tmp_path)
  (folder / "vocab.json").unlink(missing_ok=True)
  (folder / "tokenizer.json").unlink(missing_ok=True)
  with pytest.raises(UserError, match="the tokenizer cannot be read"):
    ClipScorer(str(folder))
  file = folder / "model.safetensors"
  tensors = safetensors.torch.load_file(file)
  del tensors["logit_scale"]
  safetensors.torch.save_file(tensors, file)
  with pytest.raises(UserError, match="hold no logit_scale, and a CLIPModel"):
    ClipScorer(str(folder))
  tensors["odd"] = torch.zeros(1)
  safetensors.torch.save_file(tensors, file)
  with pytest.raises(UserError, match="hold odd"):
    ClipScorer(str(folder))
