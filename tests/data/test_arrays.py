"""Arrays that are written as they come, and read from the disk."""

import numpy as np
import pytest

from jaxpref.data import arrays
from jaxpref.data.arrays import ArrayWriter, Spool, read_arrays
from jaxpref.errors import UserError


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_come_back_in_order(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(arrays, "_RECENT", 5)
  spool, values = Spool(tmp_path, kind), []
  for count in (3, 4, 0, 11, 1):
    part = list(range(len(values), len(values) + count))
    spool.extend(part)
    values += part
    assert len(spool) == len(values)
  for _ in range(2):  # reading changes nothing
    found = spool.read()
    assert found.dtype == kind
    np.testing.assert_array_equal(found, values)
  spool.extend([7])
  assert spool.read()[-1] == 7
  spool.close()
  assert not list(tmp_path.iterdir())


def test_a_stream_and_arrays_behind_it(tmp_path):
  file = tmp_path / "data.safetensors"
  writer = ArrayWriter(file, "tokens")
  for part in ([1, 2], [], [3]):
    assert writer.append(part) == np.array(part, np.int32).tobytes()
  shares = np.array([[0.5, np.nan]], np.float32)
  writer.add("shares", shares)
  writer.add("none", np.zeros((0, 4), np.int32))
  writer.close()
  found = read_arrays(file)
  np.testing.assert_array_equal(found["tokens"], [1, 2, 3])
  np.testing.assert_array_equal(found["shares"], shares)
  assert found["none"].shape == (0, 4)
  from safetensors.numpy import load_file

  np.testing.assert_array_equal(load_file(file)["tokens"], [1, 2, 3])
  file.write_bytes(file.read_bytes()[:-4])
  with pytest.raises(UserError, match="it was cut off"):
    read_arrays(file)
