"""Writes docs/losses.md and its two plots from the losses themselves.

  python docs/make_losses.py [FOLDER]

The text is that of the docstrings, so what is told there is mended there.
"""

from collections.abc import Callable, Iterator
import importlib
import inspect
import math
import pathlib
import re
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
from matplotlib.figure import Figure
import numpy as np

from jaxpref import losses
from jaxpref.fit.loss import SUPPLIED

# Relatives stand together; a file that is not named here comes at the end.
FAMILIES = (
  "pairwise", "squared_hinge", "pairwise_absolute", "pairwise_labels",
  "divergence", "optimal_transport", "token_weighted", "reference_free",
  "unpaired", "supervised", "listwise", "ranked", "ranked_likelihood", "reward",
  "reward_axes", "judge", "dpa_rag", "diffusion", "flow", "pso", "mapo",
  "policy_gradient", "group_policy", "denoising_policy",
)  # fmt: skip

HEAD = """\
# The losses

<!-- Written by docs/make_losses.py from the docstrings; edit those. -->

`from jaxpref import losses` gives every function below: pure mathematics on
float32 arrays, unreduced, without a model or a trainer inside. Arrays come
first and have the names of one vocabulary, hyper-parameters are keywords. A
tick under *by name* means that `--config.loss.name=NAME` trains a language
model with it; the others take arrays of your own loop.

```python
from jaxpref import losses

values = losses.dpo(chosen_logratio, rejected_logratio, beta=0.1)  # [pairs]
```

Shapes and dtypes are checked as a function is traced: bfloat16, and shapes that
would broadcast, are errors. The gradient stops where the caller stops it.
Inputs of ±10,000 give finite values and gradients, and what stands in padding
reaches neither. All log-probabilities are in nats.

## What the arrays are

| array | meaning |
|---|---|
| `chosen_logratio`, `rejected_logratio` | log π − log π_ref, summed over the \
tokens of the response; of an image, minus half its mean squared error, less \
the reference's |
| `chosen_mean_logratio`, `rejected_mean_logratio` | the same, averaged over \
tokens |
| `chosen_logp`, `rejected_logp` | log π of the response, summed over its \
tokens; `mean_` averaged |
| `logratio`, `desirable`, `kl` | of single labelled responses |
| `values`, `scores`, `valid` | of lists, over the last axis: the model's \
values, the data's scores, and which items are not padding |
| `chosen_step_logratio`, `chosen_noised_logratio` | of each step of a \
few-step sampler, on its way to an image that it sampled, or to one of the \
data; `chosen_noised_gain` by errors of denoising |
| `chosen_reward`, `rejected_reward`, `preference` | of reward models; \
`preference` is 1 for a sure label, 0.5 for a tie |
| `token_logp`, `old_token_logp`, `ref_token_logp`, `advantage`, `mask` | of \
policy gradients, over the last axis |

## To choose from

"""

PLOTS = """\
## What they look like

Each loss of pairs over the margin, with its own default hyper-parameters. Both
responses have 20 tokens; the margin is that of their summed log-probabilities,
half of it gained by the chosen and half lost by the rejected one, in nats. Of
reward models it is the difference of the two rewards, of images that of their
mean squared errors.

![Losses of pairs over the margin](losses.svg)

Their gradients, by the chosen input (solid) and by the rejected one (dashed).
Where the two mirror each other, only the difference of the responses matters;
where they do not, the loss holds on to one of them.

![Gradients of the losses of pairs](loss_gradients.svg)

"""

# Of the plots: responses of so many tokens, and their log-probability at
# margin 0, in nats.
_TOKENS, _LOGP = 20, -60.0
_MARGINS = np.linspace(-50.0, 50.0, 51)
_BETA = 0.1  # the usual one, by which rewards are smaller than log-ratios
_TALLEST = (
  30.0  # of a panel, in values at margin 0: some losses are exponential
)


def main(folder: pathlib.Path) -> None:
  (folder / "losses.md").write_text(page(), encoding="utf-8")
  plot(folder)


def page() -> str:
  """The text of docs/losses.md."""
  families = list(_families())
  parts = [HEAD, _overview(families), PLOTS]
  for module, names in families:
    parts.append(_family(module, names))
  return "".join(parts)


def plot(folder: pathlib.Path) -> None:
  """Writes losses.svg and loss_gradients.svg: a panel each loss of pairs."""
  names = [name for _, names in _families() for name in names]
  names = [name for name in names if _side_inputs(losses.get(name))]
  curves = {name: _curves(losses.get(name)) for name in names}
  value = {name: [(values, "-")] for name, (values, *_) in curves.items()}
  slope = {
    name: [(chosen, "-"), (rejected, "--")]
    for name, (_, chosen, rejected) in curves.items()
  }
  _draw(value, folder / "losses.svg")
  _draw(slope, folder / "loss_gradients.svg")


def _families() -> Iterator[tuple[Any, list[str]]]:
  files: dict[str, list[str]] = {}
  for name in losses.names():
    file = losses.get(name).__module__.rpartition(".")[2]
    files.setdefault(file, []).append(name)
  for file in sorted(files, key=_place):
    yield importlib.import_module(f"jaxpref.losses.{file}"), files[file]


def _place(file: str) -> tuple[int, str]:
  known = file in FAMILIES
  return (FAMILIES.index(file) if known else len(FAMILIES)), file


def _overview(families: list[tuple[Any, list[str]]]) -> str:
  lines = ["| loss | use | one value a | by name |", "|---|---|---|---|"]
  for _, names in families:
    for name in names:
      loss = losses.get(name)
      use = _parse(loss)["use"].replace("|", "\\|")
      trains = "✓" if SUPPLIED.issuperset(losses.inputs(loss)) else ""
      unit = losses.spec(loss).unit
      lines.append(f"| [`{name}`](#{name}) | {use} | {unit} | {trains} |")
  return "\n".join(lines) + "\n\n"


def _family(module: Any, names: list[str]) -> str:
  about = inspect.getdoc(module) or ""
  title, _, rest = about.partition("\n\n")
  file = module.__name__.rpartition(".")[2]
  text = f"## {_line(title).rstrip('.')}\n\n`jaxpref/losses/{file}.py`"
  text += f". {_line(rest)}\n\n" if rest else "\n\n"
  return text + "".join(map(_section, names))


def _section(name: str) -> str:
  loss = losses.get(name)
  parsed, spec = _parse(loss), losses.spec(loss)
  lines = [f"### {name}", "", parsed["summary"]]
  if parsed["formula"]:
    lines += ["", "```text", parsed["formula"], "```"]
  if parsed["use"]:
    lines += ["", f"**Use** {parsed['use'][0].lower()}{parsed['use'][1:]}"]
  lines += ["", *map("\n".join, [[x, ""] for x in parsed["notes"]])]
  meanings = dict(parsed["args"])
  lines.append("- **Inputs**")
  for argument in losses.inputs(loss):
    lines.append(f"  - `{argument}`: {meanings.get(argument, '')}")
  defaults = _defaults(loss)
  lines.append("- **Hyper-parameters**" + ("" if defaults else ": none"))
  for argument, value in defaults.items():
    told = f"{value:g}" if isinstance(value, float) else repr(value)
    meaning = meanings.get(argument, "")
    lines.append(f"  - `{argument}={told}`: {meaning}")
  if spec.nll_weight:
    lines.append(
      f"- **Also**: training by name adds {spec.nll_weight:g} × the negative "
      "log-likelihood a token of the better responses (`nll_weight`)"
    )
  if spec.coupled:
    lines.append(
      "- **Coupled over the batch**: training takes it over the whole step, "
      "whatever the micro-batches"
    )
  lines.append(f"- **Returns**: {parsed['returns']}")
  if parsed["reference"]:
    lines.append(f"- **Reference**: {parsed['reference']}")
  return "\n".join(lines) + "\n\n"


def _parse(loss: Callable[..., Any]) -> dict[str, Any]:
  """The parts of a docstring, each on one line but for the formula."""
  text = (inspect.getdoc(loss) or "").partition("\n>>>")[0]
  parsed: dict[str, Any] = {
    "summary": "", "formula": "", "use": "", "notes": [], "args": [],
    "returns": "", "reference": "",
  }  # fmt: skip
  for number, block in enumerate(re.split(r"\n\s*\n", text)):
    head, _, rest = block.partition(":")
    if number == 0:
      parsed["summary"] = _line(block)
    elif block.startswith("    ") and not parsed["formula"]:
      parsed["formula"] = textwrap.dedent(block).rstrip()
    elif head == "Args":
      parsed["args"] = list(_arguments(rest))
    elif head in ("Use", "Returns", "Reference"):
      parsed[head.lower()] = _line(rest)
    elif block.startswith("    "):
      parsed["formula"] += "\n\n" + textwrap.dedent(block).rstrip()
    elif block.strip():
      parsed["notes"].append(_line(block))
  return parsed


def _arguments(block: str) -> Iterator[tuple[str, str]]:
  for entry in re.split(r"\n(?=  \w)", block):
    name, _, meaning = entry.partition(":")
    if meaning:
      yield name.strip(), _line(meaning)


def _defaults(loss: Callable[..., Any]) -> dict[str, Any]:
  return {
    name: parameter.default
    for name, parameter in inspect.signature(loss).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
  }


def _line(text: str) -> str:
  return " ".join(text.split())


def _side_inputs(loss: Callable[..., Any]) -> list[str]:
  """Inputs that change with the margin, of losses that have one."""
  names = losses.inputs(loss)
  known = ("logratio", "mean_logratio", "logp", "mean_logp", "reward", "logit")
  sides = [f"{side}_{x}" for side in ("chosen", "rejected") for x in known]
  if losses.spec(loss).unit != "pair":
    return []
  return [name for name in names if name in sides]


def _curves(loss: Callable[..., Any]) -> list[np.ndarray]:
  """Values over the margins, and gradients by the chosen and the rejected."""
  moving = _side_inputs(loss)
  parameters = inspect.signature(loss).parameters
  shapes = {
    name: (1,) * len(parameters[name].annotation.dim_str.split())
    for name in losses.inputs(loss)
  }

  def value(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    gained = {"chosen": chosen, "rejected": rejected}
    arrays = [
      _moved(name, gained[name.split("_")[0]], shapes[name])
      if name in moving
      else _still(name, parameters[name].annotation, shapes[name])
      for name in losses.inputs(loss)
    ]
    return jnp.sum(loss(*arrays))

  half = jnp.asarray(_margins(loss) / 2, jnp.float32)
  both = jax.vmap(jax.value_and_grad(value, argnums=(0, 1)))
  values, grads = jax.jit(both)(half, -half)
  return [np.asarray(x, np.float64) for x in (values, *grads)]


def _margins(loss: Callable[..., Any]) -> np.ndarray:
  """The margins that a loss is shown over."""
  beta = _defaults(loss).get("beta", _BETA)
  if losses.inputs(loss)[0].endswith(("reward", "logit")):
    return _MARGINS * _BETA
  # An image's margin is a mean over pixels, and its beta is in the thousands.
  return _MARGINS * _BETA / beta if beta > 50 else _MARGINS


def _moved(name: str, gain: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """One pair's input where its response has gained so many nats."""
  value = gain + _LOGP if name.endswith("logp") else gain
  if "_mean_" in name:
    value = value / _TOKENS
  return jnp.broadcast_to(value, shape)


def _still(name: str, annotation: Any, shape: tuple[int, ...]) -> jax.Array:
  """What does not depend on the margin: a sure label, equal divergences."""
  if {"bool", "bool_"} & set(annotation.dtypes):
    return jnp.ones(shape, bool)
  known = {"preference": 1.0, "chosen_score": 1.0, "offset": 1.0, "time": 0.5,
           "margin": 1.0, "absolute": 1.0}  # fmt: skip
  return jnp.full(shape, known.get(name, 0.0), jnp.float32)


def _draw(
  panels: dict[str, list[tuple[np.ndarray, str]]], path: pathlib.Path
) -> None:
  columns = 6
  rows = math.ceil(len(panels) / columns)
  style = {"svg.hashsalt": "losses", "svg.fonttype": "none", "font.size": 7}
  with mpl.rc_context(style):
    figure = Figure(figsize=(2.0 * columns, 1.55 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
      x = _margins(losses.get(name))
      axis.axvline(0.0, color="0.8", linewidth=0.6)
      middle = max(abs(values[len(values) // 2]) for values, _ in lines)
      for values, line in lines:
        shown = np.clip(values, -_TALLEST * middle, _TALLEST * middle)
        axis.plot(x, shown, line, color="C0" if line == "-" else "C1")
      axis.set_title(name, fontsize=8)
      axis.locator_params(nbins=3)
    for axis in axes[len(panels) :]:
      axis.set_axis_off()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
  where = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent
  main(pathlib.Path(where))
