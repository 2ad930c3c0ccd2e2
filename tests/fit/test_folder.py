"""A run folder of an older version."""

import json

import pytest

from jaxpref import config
from jaxpref.errors import UserError
from jaxpref.fit.folder import check_folder


def test_what_an_older_version_did_not_know_was_as_by_default(tmp_path):
  settings = config.build({"loss": {"name": "dpo", "beta": 0.2}})
  tree = config.to_dict(settings)
  del tree["data"]["aspect_buckets"], tree["optimizer"]["schedule"]
  (tmp_path / "config.json").write_text(json.dumps(tree))
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  check_folder(settings, tmp_path)
  other = config.build(
    config.to_dict(settings) | {"data": {"aspect_buckets": 3}}
  )
  with pytest.raises(UserError, match="aspect_buckets was 1 and is 3"):
    check_folder(other, tmp_path)
