"""A compiled program, read: shapes, loops and what they move. Programs are those of the CPU's compiler, and a TPU's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.planning import hlo, matmuls, products, traffic

TURNS, D = 5, 64

TPU = """\
HloModule jit_step, is_scheduled=true

%fused (param_0: f32[3,8,4], param_1: s32[]) -> f32[8,4] {
  %param_0 = f32[3,8,4]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = f32[1,8,4]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %view = f32[8,4]{1,0:T(8,128)} bitcast(%cut)
}

%gather_start (param_0.1: bf16[4,8]) -> bf16[16,8] {
  %param_0.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.1), channel_id=7, \
replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}, dimensions={0}
}

%gather_done (param_0.2: bf16[4,8]) -> bf16[16,8] {
  %param_0.2 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.2), channel_id=7, \
replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}, dimensions={0}
}

%body (loop: (s32[], f32[3,8,4], bf16[4,8])) -> (s32[], f32[3,8,4], bf16[4,8]) {
  %loop = (s32[]{:T(128)}, f32[3,8,4]{2,1,0:T(8,128)}, /*index=2*/bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%loop), index=0
  %stack = f32[3,8,4]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
  %row = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=2
  %layer = f32[8,4]{1,0:T(8,128)S(1)} fusion(%stack, %i), kind=kLoop, calls=%fused
  %begin = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%row), kind=kCustom, calls=%gather_start
  %end = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} fusion(%row), kind=kCustom, calls=%gather_done
  ROOT %next = (s32[]{:T(128)}, f32[3,8,4]{2,1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%i, %stack, %row)
}

%condition (loop.1: (s32[], f32[3,8,4], bf16[4,8])) -> pred[] {
  %loop.1 = (s32[]{:T(128)}, f32[3,8,4]{2,1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%loop.1), index=0
  %end.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %end.1), direction=LT
}

ENTRY %main (a: s32[], b: f32[3,8,4], c: bf16[4,8]) -> (s32[], f32[3,8,4], bf16[4,8]) {
  %a = s32[]{:T(128)} parameter(0)
  %b = f32[3,8,4]{2,1,0:T(8,128)} parameter(1)
  %c = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(2)
  %start = (s32[]{:T(128)}, f32[3,8,4]{2,1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) tuple(%a, %b, %c)
  ROOT %while.1 = (s32[]{:T(128)}, f32[3,8,4]{2,1,0:T(8,128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) while(%start), \
condition=%condition, body=%body, metadata={op_name="jit(step)/jvp()/while"}
}
"""


def test_a_loop_of_a_tpu_program_turns_as_its_condition_says():
    module = hlo.read(TPU)
    assert module.entry == "main" and module.runs == {"main": 1, "body": 3}


def test_a_gather_that_is_spread_over_fusions_is_one_and_its_groups_are_the_meshs():
    (one,) = traffic.collectives(hlo.read(TPU), 8)
    assert (one.kind, one.times, one.bytes, one.size) == ("all-gather", 3, 4 * 8 * 2, 4)
    assert one.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert one.sent == 3 * one.bytes


def test_of_a_stack_that_is_cut_a_layer_is_read_and_what_is_in_vmem_is_not_memory():
    # Each turn a layer of 8 x 4 in float32, and which; the row by two fusions, whose results stay in VMEM.
    assert traffic.memory_bytes(hlo.read(TPU)) == 3 * (8 * 4 * 4 + 4 + 2 * 4 * 8 * 2)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("{}", ((0, 1, 2, 3),)),
    ],
)
def test_groups_of_devices_are_read_in_every_spelling(text, groups):
    line = f"  %r = f32[8]{{0}} all-reduce(%x), channel_id=1, replica_groups={text}, to_apply=%add"
    program = f"HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n{line}\n}}\n"
    (one,) = traffic.collectives(hlo.read(program), 4)
    assert one.groups == groups


@pytest.fixture(scope="module")
def compiled():
    """(program text, XLA's own FLOPs of one turn) of a scan of products, rows and columns shared out over 2 x 4."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)

    def step(w_NDD, x_BD):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.grad(lambda w: jax.lax.scan(layer, x_BD, w)[0].sum())(w_NDD)

    w = jax.ShapeDtypeStruct((TURNS, D, D), jnp.float32, sharding=NamedSharding(mesh, P(None, None, "columns")))
    x = jax.ShapeDtypeStruct((32, D), jnp.float32, sharding=NamedSharding(mesh, P("rows")))
    return step, (w, x), jax.jit(step).lower(w, x).compile().as_text()


def test_a_scan_of_the_cpu_compiler_turns_as_often_as_it_has_layers(compiled):
    module = hlo.read(compiled[2])
    assert sorted(set(module.runs.values())) == [1, TURNS]
    found = traffic.collectives(module, 8)
    assert {one.kind for one in found} >= {"all-reduce"}
    # Gradients of the weights meet over the rows, once for each layer or all at the end.
    share = 4 * TURNS * D * D / 4
    across = [one for one in found if one.size == 2 and {d // 4 for d in one.groups[0]} == {0, 1}]
    assert sum(one.times * one.bytes for one in across) == pytest.approx(share, rel=0.01)


def test_flops_of_a_scan_are_those_of_all_its_layers(compiled):
    step, given, text = compiled
    forward = TURNS * 2 * 32 * D * D
    counted, known = matmuls.flops(step, *given, platform="cpu")
    assert known and counted in (3 * forward, 3 * forward - 2 * 32 * D * D)  # the input needs no gradient
    assert products.by_dtype(hlo.read(text)) == {"f32": pytest.approx(1.0)}


def test_what_is_computed_again_counts_again_and_an_endless_loop_is_told():
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    def gradient(function):
        return lambda x, w: jax.grad(lambda w: function(x, w).sum())(w)

    x, w = jnp.ones((8, D)), jnp.ones((D, D))
    kept, _ = matmuls.flops(gradient(layer), x, w, platform="cpu")
    again, _ = matmuls.flops(gradient(jax.checkpoint(layer)), x, w, platform="cpu")
    assert again == kept + 2 * 2 * 8 * D * D
    _, known = matmuls.flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), x, platform="cpu")
    assert not known


def test_a_piece_that_is_brought_to_vmem_is_read():
    line = "%s = ((f32[64,8]{1,0}), f32[8,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:8]}"
    assert traffic.memory_bytes(program(line, "x: f32[64,8]")) == 8 * 8 * 4
    line = "%s = ((f32[64,8]{1,0}), f32[8,8]{1,0}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:8]}"
    assert traffic.memory_bytes(program(line, "x: f32[64,8]")) == 2 * 8 * 8 * 4, "and written, where it stays"


def test_of_experts_the_rows_count_that_they_have_on_average_and_of_platforms_the_one_that_runs():
    from jaxft.layers.grouped import grouped

    x_JI, kernel_EIO, sizes_E = jnp.ones((256, D)), jnp.ones((4, D, 16)), jnp.full((4,), 64, jnp.int32)

    def learn(x, kernel):
        return jax.grad(lambda kernel: grouped(x, kernel, sizes_E).sum())(kernel)

    one = 2 * 256 * D * 16
    assert matmuls.flops(learn, x_JI, kernel_EIO, platform="tpu")[0] in (2 * one, 3 * one)
    assert matmuls.flops(learn, x_JI, kernel_EIO, platform="tpu", experts=4)[0] in (2 * one / 4, 3 * one / 4)
    assert matmuls.flops(learn, x_JI, kernel_EIO, platform="tpu")[1]
    assert not matmuls.flops(learn, x_JI, kernel_EIO, platform="cpu")[1], "there blocks of rows, as many as it takes"


def program(line, arguments="x: bf16[64,8]"):
    name, _, kind = arguments.partition(": ")
    return hlo.read(
        f"HloModule m\n\n%all-reduce-scatter (input: {kind}) -> bf16[8,8] {{\n"
        f"  %input = {kind}{{1,0}} parameter(0)\n"
        f"  %all-reduce.3 = {kind}{{1,0}} all-reduce(%input), channel_id=3, replica_groups=[2,4]<=[8]\n"
        "  %i = s32[] constant(0)\n"
        "  ROOT %cut = bf16[8,8]{1,0} dynamic-slice(%all-reduce.3, %i, %i), dynamic_slice_sizes={8,8}\n}\n\n"
        f"ENTRY %main ({arguments}) -> bf16[8,8] {{\n  %{name} = {kind}{{1,0}} parameter(0)\n"
        f"  %after-all = token[] after-all()\n  ROOT {line}\n}}\n"
    )


def test_collectives_of_one_channel_that_stand_by_themselves_are_several():
    """As those of shard_map do, keys and values on their way round a ring."""
    permute = "collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}"
    line = f"%a = bf16[64,8]{{1,0}} {permute}\n  ROOT %b = bf16[64,8]{{1,0}} {permute}"
    head = "HloModule m\n\nENTRY %main (x: bf16[64,8]) -> bf16[64,8] {\n  %x = bf16[64,8]{1,0} parameter(0)\n"
    text = f"{head}  {line}\n}}\n"
    found = traffic.collectives(hlo.read(text), 2)
    assert [one.kind for one in found] == ["collective-permute"] * 2


def test_what_is_reduced_and_cut_is_a_reduce_scatter():
    line = "%f = bf16[8,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter"
    (one,) = traffic.collectives(program(line), 8)
    assert (one.kind, one.bytes, one.size) == ("reduce-scatter", 1024, 4)


def test_what_is_sent_to_another_slice_through_the_host_is_a_collective_over_the_slices():
    line = (
        "%s = (bf16[64,8]{1,0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    (one,) = traffic.collectives(program(line), 8, slices=2)
    assert (one.kind, one.bytes, one.groups) == ("all-reduce", 1024, ((0, 4), (1, 5), (2, 6), (3, 7)))
