"""Cost of compiled programs whose work is known."""

import jax
import jax.numpy as jnp
import pytest
from support.eight_devices import collectives_of_programs, on_eight_devices

from upalm.planning.hlo import Program


def compiled(function, *shapes) -> Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program.parse(jax.jit(function).lower(*arguments).compile().as_text() or "")


def test_loop_bodies_count_as_often_as_they_run():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    assert compiled(f, (32, 64), (64, 64)).work({"devices": 1}).flops == 7 * 2 * 32 * 64 * 64

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (f(x, w), None), x, None, length=3)[0]

    assert compiled(nested, (32, 64), (64, 64)).work({"devices": 1}).flops == 21 * 2 * 32 * 64 * 64


def test_loops_of_unknown_length_count_once():
    def f(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ w, x)

    work = compiled(f, (32, 64), (64, 64)).work({"devices": 1})
    assert work.loops_counted_once == 1 and work.flops == 2 * 32 * 64 * 64


def test_flops_of_batched_products():
    program = compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 32, 64), (5, 64, 16))
    assert program.work({"devices": 1}).flops == 5 * 2 * 32 * 64 * 16


def test_slices_read_only_their_own_bytes():
    def f(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i.astype(int)[0], 1)

    assert compiled(f, (1000, 256), (1,)).work({"devices": 1}).memory_bytes < 10 * 256 * 4


def test_stacked_arrays_of_a_loop():
    def f(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), x), x, None, length=7)[1]

    program = compiled(f, (32, 64), (64, 64))
    [(loop, n)] = program.loops()
    assert n == 7 and [b.shape for b in program.stacked(loop)] == [(7, 32, 64)]


def test_collectives_are_counted_by_mesh_axes():
    on_eight_devices(collectives_of_programs)


_TPU = """HloModule a_step, is_scheduled=true

%all-reduce-scatter.1 (input.1: bf16[64,32]) -> bf16[16,32] {
  %input.1 = bf16[64,32]{1,0} parameter(0)
  %all-reduce.2 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input.1), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %slice = bf16[16,32]{1,0} dynamic-slice(%all-reduce.2, %input.1), dynamic_slice_sizes={16,32}
}

ENTRY %main (p: bf16[64,32]) -> bf16[16,32] {
  %p = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %convolution.1 = bf16[64,3,16]{2,0,1} convolution(%p, %w), window={size=3 pad=2_2 rhs_reversal=1}, \
dim_labels=bf0_0oi->b0f
  %w = bf16[3,16,32]{2,1,0} parameter(1)
  %flash.3 = bf16[64,32]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={\
kernel_metadata={
"flops":"1234"
}}
  %near.4 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} copy(%near.4)
  ROOT %fusion.5 = bf16[16,32]{1,0} fusion(%flash.3), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_tpu_programs_are_read():
    """TPU programs write reduce-scatters as fusions and products as convolutions, and have kernels and fast memory."""
    work = Program.parse(_TPU.replace("convolution(%p", "convolution(%q").replace("%p = ", "%q = bf16[64,32,1]{0} "
        "parameter(2)\n  %p = ")).work({"data": 4, "model": 2})  # fmt: skip
    [(c, n)] = work.collectives.items()
    assert (c.kind, c.axes, c.n_devices, n) == ("reduce-scatter", ("data",), 4, 1)
    assert c.n_bytes == 64 * 32 * 2 * 3 // 4
    assert work.flops == 1234 + 2 * 64 * 32 * 3 * 16


_ASYNC = """HloModule a_step, is_scheduled=true

%negates (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  ROOT %negate.1 = f32[1024]{0} negate(%x)
}

%slices (z: f32[1024]) -> f32[512] {
  %z = f32[1024]{0} parameter(0)
  ROOT %slice.1 = f32[512]{0:S(1)} slice(%z), slice={[0:512]}
}

%multiplies (y: f32[16,16]) -> f32[16,16] {
  %y = f32[16,16]{1,0} parameter(0)
  ROOT %dot.1 = f32[16,16]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %q = bf16[1024]{0} parameter(1)
  %m = f32[16,16]{1,0} parameter(2)
  START
  ROOT %r = f32[1024]{0} parameter(3)
}
"""


@pytest.mark.parametrize(
    ("start", "memory_bytes", "sent"),
    [
        ("((f32[1024]{0}), f32[1024]{0}, u32[]{:S(2)}) async-start(%p), calls=%negates", 8192, 0),
        ("((f32[1024]{0}), f32[1024]{0}, s32[]) negate-start(%p)", 8192, 0),
        ("((f32[1024]{0}), f32[512]{0:S(1)}, u32[]{:S(2)}) async-start(%p), calls=%slices", 2048, 0),
        ("((f32[1024]{0}), f32[512]{0:S(1)}, u32[]{:S(2)}) slice-start(%p), slice={[0:512]}", 2048, 0),
        ("(f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%p)", 4096, 0),
        ("(bf16[1024]{0}, bf16[4096]{0}) all-gather-start(%q), replica_groups={{0,1,2,3}}", 10_240, 3 * 2048),
        ("f32[1024]{0} all-reduce-start(%p), replica_groups={{0,1,2,3}}", 8192, 2 * 4096 * 3 // 4),
        ("((f32[1024]{0}), f32[256]{0}, u32[]) reduce-scatter-start(%p), replica_groups={{0,1,2,3}}", 5120, 3072),
        ("(bf16[1024]{0}, bf16[1024]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}",
         4096, 2048),
        ("((f32[16,16]{1,0}), f32[16,16]{1,0}, s32[]) fusion-start(%m), calls=%multiplies", 2048, 0),
    ],
)  # fmt: skip
def test_asynchronous_operations_count_once(start, memory_bytes, sent):
    """The tuple of a start repeats the operands, which are read once; the computation that it calls is counted.

    What moves between main memory and the chip (`S(1)`) counts at one end.
    """
    work = Program.parse(_ASYNC.replace("START", f"%s = {start}")).work({"data": 4})
    assert (work.memory_bytes, work.collective_bytes) == (memory_bytes, sent)
    assert work.flops == (2 * 16**3 if "fusion" in start else 0)


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        Program.parse("nothing")
