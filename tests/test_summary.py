import json

from jaxpref.summary import before_and_after


def _write(folder, *lines):
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)


def test_first_and_last_value_with_the_error(tmp_path):
  name = "eval/rewards/accuracies"
  _write(
    tmp_path,
    {"step": 0, name: 0.5, f"{name}_stderr": 0.1},
    {"step": 1, "loss": 0.69},
    {"step": 2, "loss": 0.25, name: 0.875, f"{name}_stderr": 0.0625},
  )
  head, accuracy, loss = before_and_after(tmp_path).splitlines()
  assert head.split() == ["before", "after"]
  assert accuracy.split()[-4:] == ["0.500", "0.875", "±", "0.062"]
  assert loss.split() == ["training", "loss", "0.6900", "0.2500"]


def test_each_axis_has_a_line(tmp_path):
  name = "eval/rewards/accuracies"
  values = {name: 0.75, f"{name}/wit": 0.5, f"{name}/wit_stderr": 0.125}
  _write(tmp_path, {"step": 0, **values}, {"step": 2, **values})
  _, _, wit = before_and_after(tmp_path).splitlines()
  assert wit.split() == ["on", "wit", "0.500", "0.500", "±", "0.125"]


def test_what_was_not_measured_is_left_out(tmp_path):
  _write(tmp_path, {"step": 1, "loss": 0.5, "eval/loss": None})
  text = before_and_after(tmp_path)
  assert "held-out" not in text
  assert "training loss" in text


def test_columns_stand_below_each_other(tmp_path):
  _write(tmp_path, {"step": 1, "loss": 0.5, "eval/loss": 123.0})
  lines = before_and_after(tmp_path).splitlines()
  assert len({len(line) for line in lines}) == 1


def test_policy_that_is_its_reference(tmp_path):
  name = "eval/rewards/accuracies"
  _write(
    tmp_path,
    {"step": 0, name: 0.0, "eval/rewards/ties": 1.0},
    {"step": 1, name: 1.0, "eval/rewards/ties": 0.0},
  )
  accuracy = before_and_after(tmp_path).splitlines()[1]
  assert accuracy.split()[-3:] == ["all", "ties", "1.000"]
