"""The UNet against diffusers' UNet2DConditionModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpref.models.build import bind, define
from jaxpref.models.sdxl import unet as unet_module
from jaxpref.models.sdxl.parts import load_part, read_part
from jaxpref.models.weights import at

# What each tiny model takes beside latents, timesteps and context.
EXTRA = {
  "sdxl": {
    "added": {
      "text_embeds": np.random.default_rng(1).normal(size=(2, 10)),
      # Beyond 256, where 16 bits would round them.
      "time_ids": np.array(
        [[1001, 515, 0, 7, 1024, 1024], [640, 999, 3, 0, 512, 769]]
      ),
    }
  },
  "sd1": {
    "class_labels": np.array([3, 0]),
    "timestep_cond": np.random.default_rng(2).normal(size=(2, 6)),
  },
  "pruned": {"class_labels": np.random.default_rng(3).normal(size=(2, 7))},
}
SIZES = {"sdxl": (8, 12), "sd1": (5, 7), "pruned": (6, 4)}  # sd1: odd ones


def _inputs(name):
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(2, *SIZES[name], 4)).astype(np.float32)
  timestep = np.array([981.0, 3.5], np.float32)
  context = rng.normal(size=(2, 7, 12)).astype(np.float32)
  extra = jax.tree.map(
    lambda x: x.astype(np.int32 if name == "sd1" and x.ndim == 1 else "f4"),
    EXTRA[name],
  )
  return latents, timestep, context, extra


def _torch_outputs(model, latents, timestep, context, extra):
  """The prediction, that of each level before it, and gradients."""
  seen = []

  def record(module, inputs, output):
    output = output[0] if isinstance(output, tuple) else output
    seen.append(output.detach().permute(0, 2, 3, 1).numpy())

  levels = [*model.down_blocks, model.mid_block, *model.up_blocks]
  hooks = [level.register_forward_hook(record) for level in levels]
  given = jax.tree.map(torch.tensor, extra)
  if "added" in given:
    given["added_cond_kwargs"] = given.pop("added")
  model.zero_grad()
  x = torch.tensor(latents).permute(0, 3, 1, 2)
  out = model(x, torch.tensor(timestep), torch.tensor(context), **given).sample
  (out**2).sum().backward()
  for hook in hooks:
    hook.remove()
  grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
  return [*seen, out.detach().permute(0, 2, 3, 1).numpy()], grads


def _record_levels(monkeypatch):
  seen = []

  def recording(method):
    def call(self, *args):
      output = method(self, *args)
      seen.append(output[0] if isinstance(output, tuple) else output)
      return output

    return call

  for name in ("down", "middle", "up"):
    method = getattr(unet_module.Stage, name)
    monkeypatch.setattr(unet_module.Stage, name, recording(method))
  return seen


@pytest.mark.parametrize("name", SIZES)
def test_levels_and_outputs_are_diffusers(name, make_unet, monkeypatch):
  model, folder = make_unet(name)
  definition = define(read_part(folder), dtype="float32")
  params = load_part(folder, definition)
  inputs = _inputs(name)
  seen = _record_levels(monkeypatch)

  def forward(params, latents, timestep, context, extra):
    seen.clear()
    out = bind(definition, params)(latents, timestep, context, **extra)
    return jnp.sum(out**2), [*seen, out]

  # One model's gradients tell of the others': they are made of the same parts.
  graded = name == "sd1"
  run = jax.jit(jax.grad(forward, has_aux=True) if graded else forward)
  grads, ours = run(params, *inputs)
  theirs, torch_grads = _torch_outputs(model, *inputs)
  assert len(ours) == len(theirs)
  for mine, other in zip(ours, theirs):
    np.testing.assert_allclose(mine, other, atol=1e-4)
  if graded:
    _compare(definition, grads, torch_grads)
  # Rows taken for columns in one kernel would be seen.
  conv = params["up_blocks"]["0"]["resnets"]["0"]["conv1"]
  conv["kernel"] = conv["kernel"].swapaxes(0, 1)
  _, (*_, wrong) = run(params, *inputs)
  assert np.abs(wrong - theirs[-1]).max() > 1e-2


def _compare(definition, grads, torch_grads):
  for weight in definition.table:
    leaf = np.asarray(at(grads, weight.path))
    for layer in range(len(leaf) if weight.stacked else 1):
      mine = weight.theirs(leaf[layer] if weight.stacked else leaf)
      other = torch_grads.pop(weight.name.format(layer))
      # Beside the largest of the tensor.
      scale = max(1.0, np.abs(other).max())
      np.testing.assert_allclose(mine, other, atol=1e-4 * scale)
  assert not torch_grads
