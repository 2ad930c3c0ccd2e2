import gc
import logging
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpref import sharding
from jaxpref.errors import UserError
from jaxpref.fit.checkpoint import Checkpoints

LAST = 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
  """A folder with the checkpoints of steps 10, 20 and 30."""
  folder = tmp_path_factory.mktemp("run") / "checkpoints"
  checkpoints = Checkpoints(folder)
  for step in (10, 20, LAST):
    checkpoints.save(step, _state(step))
  checkpoints.close()
  return folder


@pytest.fixture
def late_reads():
  """Other reads of Orbax end after the first has failed, and say so."""
  yield
  time.sleep(0.1)
  gc.collect()


# With that fixture, for the tests in which Orbax itself meets the damage.
torn_within = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def _state(step: int) -> dict:
  return {
    "params": {"kernel": jnp.full((32, 16), step, jnp.float32)},
    "moments": (jnp.full((32, 16), step, jnp.bfloat16), jnp.arange(7)),
    "step": jnp.int32(step),
  }


def _like() -> dict:
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), _state(0)
  )


def _assert_state(state: dict, step: int) -> None:
  assert jax.tree.structure(state) == jax.tree.structure(_state(step))
  jax.tree.map(np.testing.assert_array_equal, state, _state(step))


def _restore(folder: pathlib.Path) -> tuple[dict, int] | None:
  checkpoints = Checkpoints(folder)
  restored = checkpoints.restore_latest(_like())
  checkpoints.close()
  return restored


def test_restores_the_newest(saved):
  state, step = _restore(saved)
  assert step == LAST
  _assert_state(state, LAST)


def test_nothing_to_restore(tmp_path):
  assert _restore(tmp_path / "checkpoints") is None


def test_keeps_three(saved, tmp_path):
  shutil.copytree(saved, folder := tmp_path / "checkpoints")
  checkpoints = Checkpoints(folder)
  checkpoints.save(LAST, _state(0))  # is there already: not saved again
  checkpoints.save(40, _state(40))
  checkpoints.close()
  assert sorted(each.name for each in folder.iterdir()) == ["20", "30", "40"]
  shutil.rmtree(folder / "40")
  _assert_state(_restore(folder)[0], LAST)


def test_restores_into_the_shards_that_are_asked_for(saved):
  mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  like = _like()
  like["params"]["kernel"] = jax.ShapeDtypeStruct(
    (32, 16), jnp.float32, sharding=rows
  )
  checkpoints = Checkpoints(saved)
  state, _ = checkpoints.restore_latest(like)
  checkpoints.close()
  assert state["params"]["kernel"].sharding == rows
  _assert_state(state, LAST)


def test_every_torn_file_is_noticed_or_does_not_matter(
  saved, tmp_path, caplog, capfd
):
  caplog.set_level(logging.WARNING)
  names = [
    str(file.relative_to(saved))
    for file in sorted((saved / str(LAST)).rglob("*"))
    if file.is_file()
  ]
  passed_over = set()
  for number, name in enumerate(names):
    for share in (0.0, 0.5):
      folder = tmp_path / f"{number}-{share}" / "checkpoints"
      shutil.copytree(saved, folder)
      content = (folder / name).read_bytes()
      (folder / name).write_bytes(content[: int(share * len(content))])
      caplog.clear()
      state, step = _restore(folder)
      _assert_state(state, step)
      damaged = folder.with_name("checkpoints.damaged")
      if step == LAST:
        assert not damaged.exists()
        continue
      passed_over.add(name)
      assert step == 20
      assert f"Passing over step {LAST}" in caplog.text
      assert str(damaged) in caplog.text
      assert damaged / str(LAST) / pathlib.Path(name).relative_to(str(LAST))
      assert sorted(each.name for each in folder.iterdir()) == ["10", "20"]
  arrays = {name for name in names if "/d/" in name}
  assert arrays  # what restoring reads in any case
  assert arrays <= passed_over
  # No thread of a library prints what it makes of the torn file.
  assert "Traceback" not in capfd.readouterr().err


def test_a_missing_file_is_noticed(saved, tmp_path):
  shutil.copytree(saved, folder := tmp_path / "checkpoints")
  next((folder / str(LAST)).rglob("d/*")).unlink()
  assert _restore(folder)[1] == 20


@torn_within
def test_bits_that_turned_are_not_taken_for_a_state(
  saved, tmp_path, late_reads
):
  """The same length, other content: Orbax's own checks see it."""
  shutil.copytree(saved, folder := tmp_path / "checkpoints")
  files = list((folder / str(LAST)).rglob("d/*"))
  file = max(files, key=lambda each: each.stat().st_size)
  file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
  state, step = _restore(folder)
  assert step == 20
  _assert_state(state, 20)


def test_one_that_was_not_finished_does_not_count(saved, tmp_path):
  """As a kill leaves it: all files there, under a temporary name."""
  shutil.copytree(saved, folder := tmp_path / "checkpoints")
  (folder / str(LAST)).rename(
    folder / f"{LAST}.orbax-checkpoint-tmp-1700000000000000"
  )
  checkpoints = Checkpoints(folder)
  state, step = checkpoints.restore_latest(_like())
  assert step == 20
  _assert_state(state, 20)
  checkpoints.save(LAST, _state(LAST))  # the run comes to that step again
  checkpoints.close()
  _assert_state(_restore(folder)[0], LAST)


def test_none_can_be_read(saved, tmp_path):
  shutil.copytree(saved, folder := tmp_path / "checkpoints")
  for file in folder.rglob("d/*"):
    file.write_bytes(b"")
  checkpoints = Checkpoints(folder)
  with pytest.raises(
    UserError, match=r"Remove the folder .* --workdir"
  ) as info:
    checkpoints.restore_latest(_like())
  checkpoints.close()
  assert str(folder) in str(info.value)
  assert all(f"step {step}" in str(info.value) for step in (10, 20, LAST))
  assert sorted(each.name for each in folder.iterdir()) == ["10", "20", "30"]


@torn_within
def test_another_model_is_not_a_checkpoint_of_this_one(saved, late_reads):
  like = _like()
  like["params"]["kernel"] = jax.ShapeDtypeStruct(
    (16, 32), jnp.float32, sharding=like["params"]["kernel"].sharding
  )
  checkpoints = Checkpoints(saved)
  with pytest.raises(UserError, match="can be read"):
    checkpoints.restore_latest(like)
  checkpoints.close()
