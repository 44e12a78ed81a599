"""Continue any checkpoint with UL2R on your own text: an imported open model, or one of your own.

Paper:    U-PaLM (arXiv:2210.11399) section 2: the checkpoint's weights, fresh optimizer, cosine to a hundredth.
          `paper` is its run. The others fit a machine: `ul2r_infill`, the mixture for gaps with text after them, one
          budget per row for inputs and targets, and factored second moments, 10 bytes per parameter in place of 16.
Command:  upalm import-hf SOURCE --out models/base
          upalm run ul2r --init models/base --data TEXT     (the config of this machine; or `ul2r gpu24 --init ...`)
          upalm eval --checkpoint runs/ul2r --data TEXT
          upalm export-hf --checkpoint runs/ul2r --out models/ul2r
Hardware: what the config says. A run begins with the memory of its step (`upalm plan ul2r gpu24 --init models/base` has
          more), tokens, their share of the base's pretraining where that is known, and hours. JAX takes three quarters
          of a GPU, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 more: gpu24's 1B needs it.
Cost:     by the config, in memory planned on a CPU, and in hours at an MFU of 40%; not measured on a GPU.
Expected: infilling costs fewer bits per byte than under the import, and format_ok rises from 0.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from jax.sharding import Mesh

from upalm.checkpoints.folder import open_checkpoint
from upalm.checkpoints.lineage import read_info
from upalm.data.config import DataConfig
from upalm.distributed.processes import ProcessConfig
from upalm.model.config import ModelConfig
from upalm.planning.lowering import training
from upalm.planning.planner import ADVICE, Plan, plan
from upalm.planning.topology import target_of
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Continue, LoggingConfig, MeshConfig, TrainConfig
from upalm.training.launch import run
from upalm.training.optim import Adafactor, Schedule

MFU = 0.4
"""Model FLOPs utilisation that hours are stated at."""

CPU_FLOPS = 0.25e12
"""FLOP/s of a CPU that hours are stated at: with `MFU`, 0.1 TFLOP/s, about what 2 cores reach."""


@dataclass(frozen=True)
class Ul2r:
    """UL2R of a checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("-c", "--init"))]
    """Checkpoint to start from; its weights and tokenizer are taken, its optimizer state is not."""
    data: str
    """Text, or a folder made by `upalm data build`."""
    out: Path = Path("runs/ul2r")
    """Folder of the run. Run again with the same settings to resume."""
    n_steps: int = 20_000
    """Optimizer steps; the paper's is 20,000, about 0.1% of pretraining."""
    batch_size: int = 32
    """Rows per batch (the paper's for 540B)."""
    seq_len: int = 2048
    """Tokens per row; no more than the model's rows have."""
    peak: float = 1e-4
    """Learning rate, relative to the RMS of each parameter; it falls to a hundredth over the run."""
    mixture: str = "ul2r"
    """Mixture of denoisers: ul2r is the paper's, ul2r_infill is for text that follows a gap (EOS ends the inputs, and
    gaps lie anywhere), ul2r_gaps also for answers that end by themselves, causal is the control; docs/extending.md has
    the others."""
    joint_budget: bool = False
    """Let inputs and targets share the row, instead of half a row each as in the paper."""
    factored: bool = False
    """Keep second moments by row and column, and momentum in bf16: 2 bytes of state per parameter, not 8."""
    remat: Literal["kept", "none", "matmuls", "full"] = "kept"
    """Activations recomputed by the backward pass (`ModelConfig.remat`); `kept` leaves it as the checkpoint has it."""
    accumulation: int = 1
    """Microbatches that a batch is split into, to save memory."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Decides data order and noise."""
    base_tokens: float = 0
    """Tokens that the base was pretrained on, to state the share; of a run of upalm they are known."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    processes: ProcessConfig = field(default_factory=ProcessConfig)
    """Addresses of the run's processes. With them, name a config: the choice of one for this machine would look at
    its devices before the processes have met."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def config(self) -> TrainConfig:
        """The run, with rows no longer than the model's."""
        seq_len = min(self.seq_len, open_checkpoint(self.checkpoint)[0].seq_len)
        return TrainConfig(
            out=self.out,
            start=Continue(self.checkpoint, self.remat),
            data=DataConfig(
                self.data, self.mixture, seq_len=seq_len, batch_size=self.batch_size, joint_budget=self.joint_budget
            ),
            optimizer=Adafactor(Schedule("cosine", peak=self.peak, final=self.peak / 100), factored=self.factored),
            n_steps=self.n_steps,
            accumulation=self.accumulation,
            seed=self.seed,
            save_every=self.save_every,
            eval_every=self.save_every,
            checkpoints=self.checkpoints,
            mesh=self.mesh,
            processes=self.processes,
            logging=self.logging,
        )


FITTED = Ul2r(tyro.MISSING, tyro.MISSING, mixture="ul2r_infill", joint_budget=True, factored=True)
CPU = replace(FITTED, n_steps=200, batch_size=8, seq_len=256, peak=2e-3, save_every=100)
GPU24 = replace(FITTED, n_steps=4000, accumulation=16, peak=5e-4, remat="full")
GPU80 = replace(FITTED, accumulation=16, remat="full")

PAPER = Ul2r(tyro.MISSING, tyro.MISSING)

CONFIGS = {
    "cpu": ("2 cores: 200 steps x 8 x 256, 0.41M tokens. The shipped base: a minute; 135M: 2.8 GiB, an hour.", CPU),
    "gpu24": ("24 GB: 4,000 steps x 32 x 2048, 0.26B tokens. 1B: 18.5 GiB, 8 hours of 165 TFLOP/s.", GPU24),
    "gpu80": ("80 GB: 20,000 steps x 32 x 2048, 1.3B tokens. 3.2B: 49 GiB, 20 hours of 989 TFLOP/s.", GPU80),
    "paper": ("The paper's: 20,000 steps x 32 x 2048, 1.3B tokens, fp32 state, ul2r. 540B: recipe ul2r_540b.", PAPER),
}


def config_here() -> str:
    """Name of the config for this machine's devices."""
    ProcessConfig().connect()
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "cpu"
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)  # of a GPU: the part that JAX reserves, three quarters
    return "paper" if device.platform == "tpu" else "gpu80" if memory > 48e9 else "gpu24"


def state_cost(args: Ul2r, config: TrainConfig, model: ModelConfig, mesh: Mesh | None) -> str:
    """State tokens, their share of the base's pretraining, memory of a step, and hours."""
    cost = plan(training(config, model, mesh), model, target_of("here"), mesh)
    stages = read_info(args.checkpoint).stages or ()
    base_tokens = args.base_tokens or sum(stage.n_tokens for stage in stages)
    share = f"{cost.run_tokens / base_tokens:.2%} of the base's" if base_tokens else "the base's are unknown"
    sizes = f"{config.n_steps:,} steps x {config.data.batch_size} x {config.data.seq_len}"
    shorter = "" if config.data.seq_len == args.seq_len else ", as long as the model's rows"
    lines = [f"{sizes}{shorter}: {cost.run_tokens:,} tokens ({share})", _memory(cost), _hours(cost)]
    return "\n".join(lines if cost.fits is not False else [*lines, f"It does not fit. What helps: {ADVICE}."])


def _memory(cost: Plan) -> str:
    of = "" if cost.capacity_gib is None else f" of {cost.capacity_gib:.0f}"
    return f"memory of a step, as `upalm plan` has it: {cost.memory_gib['total']:.2f}{of} GiB per device"


def _hours(cost: Plan) -> str:
    peak = cost.peak_flops or (CPU_FLOPS if jax.devices()[0].platform == "cpu" else None)
    if peak is None:
        return "hours: unknown, because this device's peak is in no table; the progress line has the time left"
    seconds = cost.run_tokens / cost.tokens_per_step * cost.flops_per_step / (MFU * peak * cost.devices)
    return f"{seconds / 3600:,.2f} hours at an MFU of {MFU:.0%} of {peak / 1e12:g} TFLOP/s per device"


if __name__ == "__main__":
    args = recipes.choose(CONFIGS, __doc__, config_here)
    run(args.config(), partial(state_cost, args))
