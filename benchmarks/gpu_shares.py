"""Least time of each part of a training step on an H200, from the program that XLA compiles for it. It needs no GPU.

    pip install jax-cuda13-pjrt jax-cuda13-plugin nvidia-cuda-nvcc      # of the versions of jax
    python benchmarks/gpu_shares.py --shape llama1b --batch 8 --attention pallas

A kernel takes the larger of its FLOPs at the peak and its bytes at the bandwidth of the data sheet.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import gpu_memory
import gpu_speed
import tyro
from peers import clock
from peers.shapes import SHAPES
from train_speed import model_config

from upalm.distributed.chips import CHIPS, GIB
from upalm.planning.hlo import _FREE, Computation, Instruction, Program, _called

H200 = gpu_memory.H100
for old, new in {
    "12.9.0": "13.0.0",
    "minor: 10": "minor: 20",
    "84942979072": "150754820096",
    "3352320000000": "4800000000000",
}.items():
    H200 = H200.replace(old, new)


LOSS_CHUNKS = 8
"""Runs of the loop over the loss."""


@dataclass(frozen=True)
class Case:
    shape: str = "llama1b"
    """A shape of `peers/shapes.py`."""
    batch: int = 8
    seq: int = 2048
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    attention: Literal["pallas", "cuDNN", "plain"] = "pallas"
    decode: int = 0
    """Rows of a step of decoding with the caches of `gpu_speed.py`, to count its kernels; 0 takes a training step."""

    @property
    def model(self):
        """Configuration of the shape's model, with rows as long as the caches where it decodes."""
        model = replace(model_config(SHAPES[self.shape]), compute_dtype="bfloat16", remat=self.remat)
        return replace(model, seq_len=gpu_speed.Case().n_slots) if self.decode else model


def compiled_step(case: Case):
    import jax

    from upalm.data.config import DataConfig
    from upalm.distributed.sharding import make_mesh
    from upalm.planning.lowering import decoding, train_arguments
    from upalm.training.config import AdamW, Scratch, TrainConfig
    from upalm.training.step import train_step

    mesh = make_mesh(1, 1, devices=gpu_memory.gpus(1, H200))
    gpu_memory.answer_as_h100(case.attention)
    model = case.model
    data = DataConfig("stdlib", seq_len=case.seq, batch_size=case.batch)
    config = replace(TrainConfig("", Scratch(model), optimizer=AdamW()), data=data)  # pyright: ignore
    with jax.set_mesh(mesh):
        if case.decode:
            return decoding(config, model, mesh, case.decode).lower().compile()
        state, batches = train_arguments(config, model, mesh, case.batch)
        return train_step.lower(state, batches, optimizer=config.optimizer.build(10), n_denoisers=1).compile()


def attention_flops(computation: Computation, i: Instruction) -> float:
    """Count the FLOPs of a call of attention, 0 for others. cuDNN computes all scores, our kernels causal ones."""
    shapes = [computation.by_name[name].result[0].shape for name in i.operands]
    if "__cudnn$fmha" in i.rest:
        q, k = shapes[:2]  # [B, T, N, H] and [B, S, K, H]
        return q[0] * q[1] * q[2] * k[1] * q[3] * (10.0 if "Backward" in i.rest else 4.0)
    if "__gpu$xla.gpu.triton" in i.rest:
        q, v = shapes[3], shapes[-1]  # [B, T, N, H] and [B, K, S, H]
        is_forward = len(shapes) == 6
        n_products = 2 if is_forward else 3 if len(i.result) == 1 else 4  # of the output, or of queries, or of keys
        return q[0] * q[1] * q[2] * v[2] / 2 * q[3] * 2.0 * n_products
    return 0.0


def loss_computations(program: Program, vocab_size: int) -> set[str]:
    """Computations of the loops over the loss. Loops over layers may run as often, but make no array of vocabulary."""
    found = set()
    for body in (_called(loop, "body") for loop, n in program.loops() if n == LOSS_CHUNKS):
        runs = list(program._run(body, 1))
        if any(vocab_size in b.shape for _, i, _, _ in runs if i.opcode not in _FREE for b in i.result):
            found |= {computation.name for computation, *_ in runs}
    return found


def kernels(program: Program, vocab_size: int) -> Iterator[tuple[str, int, float, float]]:
    """Part of the step, runs, FLOPs and bytes of each kernel and copy of a program."""
    loss = loss_computations(program, vocab_size)
    for computation, i, n, is_fused in program._run(program.entry, 1):
        if is_fused or i.opcode in _FREE or i.opcode.endswith("-done"):
            continue
        attention = attention_flops(computation, i)
        flops, n_bytes = program._flops(computation, i) + attention, program._memory_bytes(computation, i)
        inner = program.computations.get(_called(i, "calls")) if "fusion" in i.opcode else None
        if inner:
            flops += sum(program._flops(inner, x) for x in inner.by_name.values())
        if inner and i.opcode == "fusion-start":  # a copy of one layer's slice of a stack
            root = inner.origin(inner.root)
            slices = inner.by_name[root.operands[1]] if root.opcode == "dynamic-update-slice" else inner.root
            n_bytes = 2.0 * slices.result[0].n_bytes
        if attention or flops:
            part = "attention" if attention else "products"
        elif i.opcode == "fusion-start":
            part = "copies of stacks"
        elif computation.name in loss:
            part = "softmax of the loss"
        else:
            part = "optimizer and the rest" if n == 1 else "elementwise in layers"
        yield part, n, n * flops, n * n_bytes


def main() -> None:
    case, chip = tyro.cli(Case, description=__doc__), CHIPS["H200"]
    os.environ |= {"JAX_PLATFORMS": "cuda,cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # there is no driver to check
    from upalm.planning.planner import total_bytes

    step = compiled_step(case)
    if case.decode:
        found = list(kernels(Program.parse(step.as_text() or ""), case.model.vocab_size))
        print(f"{sum(n for _, n, _, _ in found)} kernels and copies, {sum(x for *_, x in found) / 1e9:.2f} GB")
        return
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for part, n, flops, n_bytes in kernels(Program.parse(step.as_text() or ""), case.model.vocab_size):
        for i, x in enumerate(
            (n, flops / 1e12, n_bytes / 1e9, 1e3 * max(flops / chip.flops, n_bytes / chip.bandwidth))
        ):
            rows[part][i] += x
    rows["sum"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    table = [(part, n, *(f"{x:.1f}" for x in found)) for part, (n, *found) in rows.items()]
    clock.print_table(("part", "kernels and copies", "TFLOP", "GB", "least ms"), table)
    print(f"planned: {total_bytes(step.memory_analysis()) / GIB:.1f} GiB")


if __name__ == "__main__":
    main()
