"""A compiled program read by its text, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxpref.plan.hlo import Program

# Ten rounds, of a loop as TPU's compiler writes it; a gather in two pieces.
_TEXT = """
HloModule jit_step, entry_computation_layout={(f32[10,8]{1,0})->f32[8]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%piece (param: f32[8]) -> f32[32] {
  %param = f32[8]{0:T(128)} parameter(0)
  ROOT %all-gather.1 = f32[32]{0:T(128)} all-gather(%param), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}
}

%other (param: f32[8]) -> f32[32] {
  %param = f32[8]{0:T(128)} parameter(0)
  ROOT %all-gather.2 = f32[32]{0:T(128)} all-gather(%param), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%all-reduce-scatter.1 (param: f32[8]) -> f32[2] {
  %param = f32[8]{0:T(128)} parameter(0)
  %all-reduce.9 = f32[8]{0} all-reduce(%param), channel_id=11, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %slice.9 = f32[2]{0} slice(%all-reduce.9), slice={[0:2]}
}

%slice (stack: f32[10,8], at: s32[]) -> f32[8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = f32[1,8]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,8}
  ROOT %bitcast.1 = f32[8]{0} bitcast(%dynamic-slice.1)
}

%body (state: (s32[], f32[8], f32[10,8])) -> (s32[], f32[8], f32[10,8]) {
  %state = (s32[], f32[8]{0}, f32[10,8]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0} get-tuple-element(%state), index=1
  %all = f32[10,8]{1,0} get-tuple-element(%state), index=2
  %row = f32[8]{0} fusion(%all, %step), kind=kLoop, calls=%slice
  %fusion.2 = f32[32]{0:T(128)S(1)} fusion(%x), kind=kCustom, calls=%piece
  %fusion.4 = f32[2]{0:T(128)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.3 = f32[32]{0:T(128)S(1)} fusion(%x), kind=kCustom, calls=%other
  %all-reduce.1 = f32[8]{0} all-reduce(%row), channel_id=8, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %next = (s32[], f32[8]{0}, f32[10,8]{1,0}) tuple(%step, %all-reduce.1, %all)
}

%condition (state: (s32[], f32[8], f32[10,8])) -> pred[] {
  %limit = s32[] constant(10)
  %state = (s32[], f32[8]{0}, f32[10,8]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%step, %limit), direction=LT
}

ENTRY %main (stack: f32[10,8]) -> f32[8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %begin = s32[] constant(0)
  %reduce-scatter.1 = f32[8]{0} reduce-scatter(%stack), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
  %tuple = (s32[], f32[8]{0}, f32[10,8]{1,0}) tuple(%begin, %reduce-scatter.1, %stack)
  %while = (s32[], f32[8]{0}, f32[10,8]{1,0}) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def test_collectives_of_a_loop_count_as_often_as_it_runs():
  found = Program(_TEXT).collectives()
  assert found == {
    "all-gather": (10, 10 * 32 * 4 * 3 / 4),  # one channel, however many pieces
    "all-reduce": (10, 10 * 2 * 8 * 4 * 3 / 4),
    "reduce-scatter": (1 + 10, 8 * 4 * 3 + 10 * 8 * 4 * 3 / 4),
  }


def test_a_slice_of_a_stack_is_not_the_stack():
  row = 8 * 4 + 8 * 4 + 4  # read of the stack, written; the counter
  reduce = 2 * 8 * 4
  gathers = 3 * 8 * 4  # all read x; what they write is in fast memory
  scatter = 10 * 8 * 4 + 8 * 4
  condition = 4 + 4 + 1
  each = row + reduce + gathers + condition
  assert Program(_TEXT).traffic() == 10 * each + scatter


def test_collectives_that_run_here():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  @jax.jit
  @jax.shard_map(
    mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"), axis_names={"x"}
  )
  def step(x):
    def one(x, _):
      return x + jax.lax.psum(x, "x"), None

    x = jax.lax.scan(one, x, None, length=5)[0]
    return jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])

  shape = jax.ShapeDtypeStruct((64, 16), jnp.float32)
  found = Program(step.lower(shape).compile().as_text()).collectives()
  size = 8 * 16 * 4
  assert found["all-reduce"] == (5, pytest.approx(5 * 2 * size * 7 / 8))
  assert found["collective-permute"] == (1, pytest.approx(size))
