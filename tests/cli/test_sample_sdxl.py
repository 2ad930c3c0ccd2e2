"""Images by the command, killed half-way and run again."""

import time

from PIL import Image
import pytest


@pytest.fixture(scope="module")
def settings(sdxl_folder, tmp_path_factory):
  prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
  prompts.write_text('{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n')
  return {
    "model.path": sdxl_folder,
    "sample.prompts": prompts,
    "sample.per_prompt": 12,
    "sample.steps": 20,
    "sample.sampler": "euler_ancestral",
  }


def test_killed_half_way_it_ends_with_the_same_files(
  launch, settings, tmp_path
):
  given = {"config": "configs/sample_sdxl.py"}
  launch(tmp_path / "whole", settings, **given)
  whole = _files(tmp_path / "whole")
  assert len(whole) == 24 + 2

  process = launch.start(tmp_path / "killed", settings, **given)
  deadline = time.monotonic() + 300
  while len(_files(tmp_path / "killed")) < 3 and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.kill()
  process.communicate(timeout=60)
  done = _files(tmp_path / "killed")
  assert 3 <= len(done) < 24

  launch(tmp_path / "killed", settings, **given)
  assert _files(tmp_path / "killed") == whole
  assert whole["00000.png"] != whole["00001.png"] != whole["00012.png"]
  with Image.open(tmp_path / "whole" / "samples" / "00012.png") as image:
    assert image.size == (64, 64)
    assert image.text["prompt"] == "a dog"


def _files(workdir):
  """Names and bytes of what is whole."""
  return {
    path.name: path.read_bytes() for path in (workdir / "samples").glob("[!.]*")
  }
