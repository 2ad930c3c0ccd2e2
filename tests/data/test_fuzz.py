"""Malformed rows and files: each refused by file and row, the others kept."""

import csv
import gzip
import importlib.util
import io
import json
import math
import pathlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pyarrow as pa
from pyarrow import parquet
import pytest

from jaxpref import config
from jaxpref.data import build, tokenizer
from jaxpref.data.containers import READERS
from jaxpref.data.inspect import screen
from jaxpref.data.inspect.measure import Findings
from jaxpref.data.read import Row, read_rows, source_files
from jaxpref.errors import UserError
from jaxpref.types import Record


def _script(name):
  path = pathlib.Path(__file__).parent / f"schemas/{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script


schemas, malform = _script("make_schemas"), _script("malform")
ROWS = [row for rows in schemas.ROWS.values() for row in rows]
TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
AT_ONCE = 20  # malformed rows of a file


HUGE = "x" * 10_000_000


@st.composite
def malformed(draw):
  """A row of some schema with one to three of its parts replaced."""
  row = json.loads(json.dumps(draw(st.sampled_from(ROWS))))
  for _ in range(draw(st.integers(1, 3))):
    malform.replace(draw, row)
  return row


LINES = st.one_of(
  malformed().map(lambda row: json.dumps(row).encode()),
  malformed().map(lambda row: json.dumps(row).encode()),
  st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")),
  st.tuples(malformed(), st.integers(1, 60)).map(
    lambda cut: json.dumps(cut[0]).encode()[: cut[1]]
  ),
  st.sampled_from([b"[", b'{"a":', b"1"]).map(lambda part: part * 50_000),
)


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
  """A tokenizer of bytes with a chat template."""
  import tokenizers

  folder = tmp_path_factory.mktemp("tokenizer")
  letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  names = ["<s>", "</s>", "<|end|>", *sorted(letters)]
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={x: i for i, x in enumerate(names)}, merges=[])
  )
  made.add_special_tokens(names[:3])
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.save(str(folder / "tokenizer.json"))
  told = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "chat_template": TEMPLATE,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(told))
  return tokenizer.Rules(tokenizer.load(folder))


def _valid(number):
  return {"prompt": f"q{number}", "chosen": " yes", "rejected": " no"}


def _check(rules, file, lines):
  """Every line is refused by its number or is a sound record."""
  between = [json.dumps(_valid(i)).encode() for i in range(len(lines))]
  whole = [each for pair in zip(lines, between) for each in pair]
  file.write_bytes(b"\n".join(whole) + b"\n")
  found, told = Findings(), []
  # A million bytes are more than a thousand tokens can hold.
  settings = config.Data(max_length=1000)
  for record, tokens in build.tokenized(
    source_files(file), settings, rules, found.tally, told.append
  ):
    _check_record(record)
    assert len(tokens.responses) == len(record.responses)
    assert all(tokens.responses)
    assert len(tokens.prompt) + max(map(len, tokens.responses)) <= 1000
    found.add(record, tokens)
    found.examples.append((record, tokens))
  kept = {int(record.id.rpartition(":")[2]) for record, _ in found.examples}
  refused = {each.row for each in told}
  blank = {i for i, line in enumerate(whole, 1) if not line.strip()}
  assert set(range(2, 2 * len(lines) + 1, 2)) <= kept
  assert not kept & refused
  assert all(each.file == file.name and each.reason for each in told)
  assert refused | kept <= set(range(1, len(whole) + 1)) - blank
  assert len(told) == sum(found.tally.refused.values())
  assert found.tally.rows == len(whole) - len(blank)
  shown = screen.text(found, rules.tokenizer, 1000, color=False)
  assert "\x1b" not in shown


def _check_record(record):
  assert isinstance(record, Record)
  assert record.responses
  contents = [record.prompt, *(each.content for each in record.responses)]
  for content in contents:
    turns = [{"content": content}] if isinstance(content, str) else content
    for turn in turns:
      turn["content"].encode()  # no half of a surrogate pair
  for response in record.responses:
    assert response.label in (None, True, False)
    assert all(map(math.isfinite, response.scores.values()))
  for better, worse, preference, weight in record.comparisons:
    assert better != worse
    assert {better, worse} <= set(range(len(record.responses)))
    assert 0.0 <= preference <= 1.0
    assert 0.0 <= weight < math.inf


def _fuzz(rules, folder, files):
  """`files` files of malformed lines."""
  file = folder / "a.jsonl"

  @settings(
    max_examples=files,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.lists(LINES, min_size=AT_ONCE, max_size=AT_ONCE))
  def check(lines):
    _check(rules, file, lines)

  check()


def test_two_hundred_malformed_rows(rules, tmp_path):
  _fuzz(rules, tmp_path, 10)


@pytest.mark.certify
def test_ten_thousand_malformed_rows(rules, tmp_path):
  _fuzz(rules, tmp_path, 10_000 // AT_ONCE)


def test_texts_of_ten_megabytes(rules, tmp_path):
  """Each in one place of a row of each kind; none is tokenised whole."""
  rows = [
    {"prompt": "q", "chosen": HUGE, "rejected": "b"},
    {"prompt": HUGE, "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": [schemas.turn("assistant", HUGE)],
     "rejected": [schemas.turn("assistant", "b")]},
    {"prompt": "q", "completion": "a", "label": HUGE},
    {HUGE: "q", "completion": "a"},
  ]  # fmt: skip
  _check(
    rules, tmp_path / "a.jsonl", [json.dumps(row).encode() for row in rows]
  )


def _bytes_of(folder, suffix):
  """A whole file of that kind, with six rows."""
  rows = [_valid(i) for i in range(6)]
  lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
  if suffix == ".json":
    return json.dumps(rows).encode()
  if suffix == ".parquet":
    file = folder / "whole.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    return file.read_bytes()
  if suffix == ".arrow":
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as out:
      out.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()
  if suffix == ".csv":  # in quotes, or a cut could not be told from an end
    out = csv.DictWriter(text := io.StringIO(), rows[0], quoting=csv.QUOTE_ALL)
    out.writeheader()
    out.writerows(rows)
    return text.getvalue().encode()
  if suffix == ".jsonl.gz":
    return gzip.compress(lines, mtime=0)
  if suffix == ".jsonl.zst":
    return pa.compress(lines, "zstd", asbytes=True)
  return lines


def _truncated(folder, suffix, cuts):
  whole = _bytes_of(folder, suffix)
  file = folder / f"cut{suffix}"
  refused = 0
  for cut in cuts(len(whole)):
    file.write_bytes(whole[:cut])
    rows = []
    try:
      for row in read_rows(source_files(file)):
        rows.append(row)
    except UserError as error:
      refused += 1
      told = str(error)
    else:
      told = file.name
    assert file.name in told
    assert len(told) < 1000
    good = [row.values for row in rows if isinstance(row, Row)]
    if suffix == ".csv" and good and not good[-1]["rejected"]:
      good.pop()  # cut before the last cell, which no reader of pairs takes
    assert good == [_valid(i) for i in range(len(good))]
  return refused


# Of a text file any part is one, and ArrayRecord has tests of its own.
CUT = [each for each in READERS if each not in (".array_record", ".txt")]


@pytest.mark.parametrize("suffix", CUT)
def test_files_cut_off_anywhere(tmp_path, suffix):
  """The rows that are whole come first, and then the file is named."""
  cuts = lambda size: range(0, size, max(1, size // 40))
  refused = _truncated(tmp_path, suffix, cuts)
  assert refused >= {".jsonl": 1, ".csv": 10}.get(suffix, 35)


@pytest.mark.certify
@pytest.mark.parametrize("suffix", CUT)
def test_files_cut_off_everywhere(tmp_path, suffix):
  _truncated(tmp_path, suffix, range)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_files_with_a_byte_changed(tmp_path, suffix):
  whole = _bytes_of(tmp_path, suffix)
  file = tmp_path / f"changed{suffix}"

  @settings(max_examples=60, deadline=None, derandomize=True, database=None)
  @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
  def check(place, change):
    changed = bytearray(whole)
    changed[place] ^= change
    file.write_bytes(changed)
    try:
      names = [row.file for row in read_rows(source_files(file))]
    except UserError as error:
      names = [str(error)]
    assert names
    assert all(file.name in name for name in names)

  check()
