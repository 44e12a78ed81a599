"""Memory of a training step on an H100 by XLA's compiler for GPUs, with each kernel of attention. It needs no GPU.

    pip install jax-cuda12-pjrt jax-cuda12-plugin nvidia-cuda-nvcc-cu12      # of the versions of jax
    python benchmarks/gpu_memory.py --size 1b --batch 8 16

JAX asks the GPU of this machine what cuDNN takes; here the answers are those of an H100. The memory that cuDNN itself
works in is not included: the compiler learns it from a GPU.
"""

import json
import os
from dataclasses import dataclass, replace
from typing import Literal

import gpu_attention
import tyro

H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 } runtime_version: "12.9.0" driver_version: "12.9.0"
  core_count: 132 clock_rate_ghz: 1.98 fpus_per_core: 128
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
"""
"""Facts that XLA wants to know of a GPU, by NVIDIA's data sheet and table of compute capabilities."""


@dataclass(frozen=True)
class Case:
    size: str = "1b"
    batch: tuple[int, ...] = (8,)
    """Rows at a time."""
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    devices: int = 1


def gpus(n: int, description: str = H100):
    from jax.experimental import topologies

    shape = {"topology": f"1x1x{n}", "target_config": description}
    return topologies.get_topology_desc(platform="cuda", topology_name="H100", **shape).devices


def answer_as_h100(path: str) -> None:
    """Say what an H100 would, and take this path of attention: `pallas`, `cuDNN` or `plain`."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn  # pyright: ignore

    from upalm.model import attention

    attention.gpu_generation = lambda: 9
    attention.GPU_KERNELS = gpu_attention.PATHS[path]
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda version: float(version) <= 9
    cudnn.is_cuda_compute_capability_equal = lambda version: version == "9.0"


def main() -> None:
    case = tyro.cli(Case, description=__doc__)
    os.environ |= {"JAX_PLATFORMS": "cuda,cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # there is no driver to check
    import jax

    from upalm.data.config import DataConfig
    from upalm.distributed.chips import CHIPS
    from upalm.distributed.sharding import make_mesh
    from upalm.model.config import PALM
    from upalm.planning.lowering import training
    from upalm.planning.planner import plan
    from upalm.planning.topology import Target
    from upalm.training.config import Scratch, TrainConfig

    model, devices = replace(PALM[case.size], remat=case.remat), gpus(case.devices)
    mesh, target = make_mesh(case.devices, 1, devices=devices), Target("H100", CHIPS["H100"], devices)
    for n_rows in case.batch:
        for path in gpu_attention.PATHS:
            jax.clear_caches()
            answer_as_h100(path)
            data = DataConfig("stdlib", seq_len=model.seq_len, batch_size=n_rows)
            config = replace(TrainConfig("", Scratch(model)), data=data)  # pyright: ignore[reportArgumentType]
            memory = plan(training(config, model, mesh), model, target, mesh).memory_gib
            print(json.dumps({"rows": n_rows, "attention": path} | {k: round(v, 2) for k, v in memory.items()}))


if __name__ == "__main__":
    main()
