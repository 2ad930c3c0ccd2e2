"""Writes a small file of each public schema, with its exact column types.

pyarrow writes them, and `datasets` the folder that it would save. The rows are
made up; columns and types are those of the published files.

    python tests/data/schemas/make_schemas.py FOLDER
"""

import gzip
import json
import pathlib
import sys
from typing import Any

import pyarrow as pa
from pyarrow import parquet

S, F64, I64 = pa.string(), pa.float64(), pa.int64()


def listed(**fields: Any) -> pa.DataType:
  return pa.list_(pa.struct(fields))


def turn(role: str, content: str) -> dict[str, str]:
  return {"role": role, "content": content}


CONTENT_ROLE = listed(content=S, role=S)
ROLE_CONTENT = listed(role=S, content=S)
_RATING = pa.struct({"Rating": S, "Rationale": S})
_TYPED = pa.struct(
  {
    "Rating": S,
    "Rationale": S,
    "Type": pa.list_(S),
    "Rationale For Rating": S,
  }
)
# Nothing is published so; see jaxpref/data/formats/trees.py.
_ACTION = {"action": S, "correct": pa.bool_(), "observation": S, "critique": S}

SCHEMAS: dict[str, dict[str, pa.DataType]] = {
  "ultrafeedback": {
    "source": S,
    "instruction": S,
    "models": pa.list_(S),
    "completions": listed(
      annotations=pa.struct(
        {
          "helpfulness": _TYPED,
          "honesty": _RATING,
          "instruction_following": _RATING,
          "truthfulness": _TYPED,
        }
      ),
      custom_system_prompt=S,
      model=S,
      principle=S,
      response=S,
      critique=S,
      overall_score=F64,
      **{"fine-grained_score": F64},
    ),
    "correct_answers": pa.list_(S),
    "incorrect_answers": pa.list_(S),
  },
  "ultrafeedback_binarized": {
    "prompt": S,
    "prompt_id": S,
    "chosen": CONTENT_ROLE,
    "rejected": CONTENT_ROLE,
    "messages": CONTENT_ROLE,
    "score_chosen": F64,
    "score_rejected": F64,
  },
  "argilla": {
    "source": S,
    "prompt": S,
    "chosen": CONTENT_ROLE,
    "chosen-rating": F64,
    "chosen-model": S,
    "rejected": CONTENT_ROLE,
    "rejected-rating": F64,
    "rejected-model": S,
  },
  "hh": {"chosen": S, "rejected": S},
  "helpsteer2": {
    "prompt": S,
    "response": S,
    **dict.fromkeys(
      ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
      pa.int32(),
    ),
  },
  "helpsteer3": {
    "domain": S,
    "language": S,
    "context": ROLE_CONTENT,
    "response1": S,
    "response2": S,
    "overall_preference": I64,
    "individual_preference": listed(
      score=I64, reasoning=S, feedback1=S, feedback2=S
    ),
  },
  "nectar": {
    "prompt": S,
    "answers": listed(answer=S, model=S, rank=F64),
    "turns": I64,
    "num_responses": I64,
    "source": pa.list_(S),
    "good_natured": pa.bool_(),
  },
  "ultrainteract": {
    "task": S,
    "dataset": S,
    "trajectory": listed(**{"from": S, "value": S}),
    "chosen": S,
    "rejected": S,
    "id": S,
    "parent_id": S,
  },
  "ultrainteract_sft": {
    **dict.fromkeys(("task", "dataset", "instruction", "response"), S),
    "id": S,
    "parent_id": S,
  },
  "tree": {
    "id": S,
    "task": S,
    "dataset": S,
    "instruction": S,
    "actions": listed(
      **_ACTION,
      actions=listed(**_ACTION, actions=listed(**_ACTION)),
    ),
  },
  "nemo": {
    "context": ROLE_CONTENT,
    "completions": listed(rank=I64, completion=ROLE_CONTENT),
  },
  "trl_language_modeling": {"text": S},
  "trl_language_modeling_chat": {"messages": ROLE_CONTENT},
  "trl_prompt_completion": {"prompt": S, "completion": S},
  "trl_prompt_completion_chat": {
    "prompt": ROLE_CONTENT,
    "completion": ROLE_CONTENT,
  },
  "trl_preference": {"prompt": S, "chosen": S, "rejected": S},
  "trl_preference_chat": {
    "prompt": ROLE_CONTENT,
    "chosen": ROLE_CONTENT,
    "rejected": ROLE_CONTENT,
  },
  "trl_implicit": {"chosen": S, "rejected": S},
  "trl_implicit_chat": {"chosen": ROLE_CONTENT, "rejected": ROLE_CONTENT},
  "trl_unpaired": {"prompt": S, "completion": S, "label": pa.bool_()},
  "trl_unpaired_chat": {
    "prompt": ROLE_CONTENT,
    "completion": ROLE_CONTENT,
    "label": pa.bool_(),
  },
  "trl_stepwise": {
    "prompt": S,
    "completions": pa.list_(S),
    "labels": pa.list_(pa.bool_()),
  },
}

_ASK = "Name a prime."
_USER = turn("user", _ASK)


def _annotated(rating: str) -> dict[str, Any]:
  plain = {"Rating": rating, "Rationale": "because"}
  typed = {**plain, "Type": ["1"], "Rationale For Rating": "because"}
  return {
    "helpfulness": typed,
    "honesty": plain,
    "instruction_following": plain,
    "truthfulness": {**typed, "Rating": "N/A"},
  }


def _completion(response: str, overall: float, rating: str) -> dict[str, Any]:
  return {
    "annotations": _annotated(rating),
    "custom_system_prompt": "Be helpful.",
    "model": f"model-{response}",
    "principle": "helpfulness",
    "response": response,
    "critique": "Fine.",
    "overall_score": overall,
    "fine-grained_score": overall / 2,
  }


def _pair_row(**scores: Any) -> dict[str, Any]:
  return {
    "prompt": _ASK,
    "chosen": [_USER, turn("assistant", "7")],
    "rejected": [_USER, turn("assistant", "8")],
    **scores,
  }


def _judged(overall: int, *votes: int) -> dict[str, Any]:
  return {
    "domain": "general",
    "language": "english",
    "context": [_USER, turn("assistant", "7"), turn("user", "Another.")],
    "response1": "11",
    "response2": "12",
    "overall_preference": overall,
    "individual_preference": [
      {"score": v, "reasoning": "r", "feedback1": "f", "feedback2": "f"}
      for v in votes
    ],
  }


def _helpsteer2(prompt: str, response: str, *ratings: int) -> dict[str, Any]:
  names = list(SCHEMAS["helpsteer2"])[2:]
  rated = dict(zip(names, ratings, strict=True))
  return {"prompt": prompt, "response": response, **rated}


def _action(action: str, correct: bool = False, **more: Any) -> dict[str, Any]:
  return {"action": action, "correct": correct, **more}


_CHAT_PAIR = {
  "chosen": [turn("assistant", "7")],
  "rejected": [turn("assistant", "8")],
}
_HUMAN = "\n\nHuman: Name a prime.\n\nAssistant:"

ROWS: dict[str, list[dict[str, Any]]] = {
  "ultrafeedback": [
    {
      "source": "sharegpt",
      "instruction": _ASK,
      "models": ["a", "b", "c", "d"],
      "completions": [
        _completion("8", 2.0, "1"),
        _completion("7", 9.0, "5"),
        _completion("5", 9.0, "5"),
        _completion("6", 4.0, "2"),
      ],
      "correct_answers": ["None"],
      "incorrect_answers": ["None"],
    }
  ],
  "ultrafeedback_binarized": [
    _pair_row(
      prompt_id="1", messages=[_USER], score_chosen=8.5, score_rejected=3.0
    )
  ],
  "argilla": [
    _pair_row(
      source="flan",
      **{"chosen-rating": 4.5, "chosen-model": "a"},
      **{"rejected-rating": 2.0, "rejected-model": "b"},
    )
  ],
  "hh": [{"chosen": _HUMAN + " 7", "rejected": _HUMAN + " 8"}],
  "helpsteer2": [
    _helpsteer2("c#", "A language.", 3, 4, 4, 2, 1),
    _helpsteer2("c#", "A note.", 1, 0, 4, 2, 2),
    _helpsteer2(
      "Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nBye.",
      "Bye!", 4, 4, 4, 0, 0,
    ),
  ],
  "helpsteer3": [_judged(-2, -3, -1, 1), _judged(0, -1, 0, 1), _judged(1)],
  "nectar": [
    {
      "prompt": _HUMAN + " ",
      "answers": [
        {"answer": f"{n}", "model": f"m{n}", "rank": float(rank)}
        for rank, n in enumerate((7, 5, 3, 11, 9, 8, 4), 1)
      ],
      "turns": 1,
      "num_responses": 7,
      "source": ["lmsys-chat-1m"],
      "good_natured": True,
    }
  ],
  "ultrainteract": [
    {
      "task": "Math_PoT",
      "dataset": "MATH",
      "trajectory": [
        {"from": "user", "value": _ASK},
        {"from": "assistant", "value": "print(8)"},
        {"from": "user", "value": "Your answer is wrong."},
      ],
      "chosen": "print(7)",
      "rejected": "print(9)",
      "id": "abc_3_1",
      "parent_id": "abc_3_0",
    }
  ],
  "ultrainteract_sft": [
    {
      "task": "Math_PoT",
      "dataset": "MATH",
      "instruction": _ASK + "\nprint(8)\nYour answer is wrong.",
      "response": "print(7)",
      "id": "abc_3_2",
      "parent_id": "abc",
    }
  ],
  "tree": [
    {
      "id": "abc",
      "task": "Math_PoT",
      "dataset": "MATH",
      "instruction": _ASK,
      "actions": [
        _action("7", correct=True),
        _action("8", critique="It is even.", actions=[
          _action("9", observation="Out: 9", critique="Try 3.", actions=[
            _action("11", correct=True)]),
          _action("5", correct=True),
          _action("6"),
          _action("3", correct=True),
        ]),
      ],
    }
  ],
  "nemo": [
    {
      "context": [_USER],
      "completions": [
        {"rank": 1, "completion": [turn("assistant", "8")]},
        {"rank": 0, "completion": [turn("assistant", "7")]},
      ],
    }
  ],
  "trl_language_modeling": [{"text": "7 is a prime."}],
  "trl_language_modeling_chat": [{"messages": [_USER, turn("assistant", "7")]}],
  "trl_prompt_completion": [{"prompt": _ASK, "completion": " 7"}],
  "trl_prompt_completion_chat": [
    {"prompt": [_USER], "completion": [turn("assistant", "7")]}
  ],
  "trl_preference": [{"prompt": _ASK, "chosen": " 7", "rejected": " 8"}],
  "trl_preference_chat": [{"prompt": [_USER], **_CHAT_PAIR}],
  "trl_implicit": [{"chosen": _ASK + " 7", "rejected": _ASK + " 8"}],
  "trl_implicit_chat": [
    {name: [_USER, *turns] for name, turns in _CHAT_PAIR.items()}
  ],
  "trl_unpaired": [
    {"prompt": _ASK, "completion": " 7", "label": True},
    {"prompt": _ASK, "completion": " 8", "label": False},
  ],
  "trl_unpaired_chat": [
    {"prompt": [_USER], "completion": [turn("assistant", "8")], "label": False}
  ],
  "trl_stepwise": [
    {
      "prompt": _ASK,
      "completions": ["2 has no divisor.", "So 4 is a prime."],
      "labels": [True, False],
    }
  ],
}  # fmt: skip


def table(name: str) -> pa.Table:
  """The rows of a schema, with its types."""
  return pa.Table.from_pylist(ROWS[name], pa.schema(SCHEMAS[name]))


def write_parquet(folder: pathlib.Path, name: str) -> pathlib.Path:
  parquet.write_table(table(name), file := folder / f"{name}.parquet")
  return file


def write_jsonl_gz(folder: pathlib.Path, name: str) -> pathlib.Path:
  """As HH-RLHF and HelpSteer2 are published."""
  lines = "".join(json.dumps(row) + "\n" for row in ROWS[name])
  file = folder / f"{name}.jsonl.gz"
  file.write_bytes(gzip.compress(lines.encode(), mtime=0))
  return file


def write_datasets(folder: pathlib.Path, name: str) -> pathlib.Path:
  """A folder that `Dataset.save_to_disk` writes, of two shards."""
  import datasets

  saved = datasets.Dataset(table(name))
  shards = min(2, len(saved))
  saved.save_to_disk(str(folder / name), num_shards=shards)
  return folder / name


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  folder.mkdir(parents=True, exist_ok=True)
  for name in SCHEMAS:
    print(write_parquet(folder, name))


if __name__ == "__main__":
  main()
