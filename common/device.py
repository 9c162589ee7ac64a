"""Device, precision and memory of a run."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

# {exact name: dense peaks in FLOP/s, without sparsity and TF32, for bfloat16 and for float32}, from NVIDIA's
# data sheets of the cards (half of the figure with sparsity) and, for the RTX 4090, appendix A of the Ada
# white paper. A card that is not here, or part of one (MIG), has no MFU.
PEAK_FLOPS = {
    name: {"bfloat16": brain, "float32": single}
    for names, brain, single in (
        (("NVIDIA B200",), 2250e12, 75e12),  # an eighth of HGX B200
        (("NVIDIA H200", "NVIDIA H100 80GB HBM3"), 989e12, 67e12),
        (("NVIDIA H100 NVL",), 835e12, 60e12),
        (("NVIDIA H100 PCIe",), 756e12, 51e12),
        (("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB"), 312e12, 19.5e12),
        (("NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"), 312e12, 19.5e12),
        (("NVIDIA L40S",), 362e12, 91.6e12),
        (("NVIDIA L40",), 181e12, 90.5e12),
        (("NVIDIA L4",), 121e12, 30.3e12),
        (("NVIDIA GeForce RTX 4090",), 165e12, 82.6e12),
    )
    for name in names
}


def choose_device(name: str) -> torch.device:
    """The named device, or with `auto` the first available of cuda, mps and cpu.

    Raises ValueError if the device is not available.
    """
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, is_there in kinds.items() if is_there]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise ValueError(
            f"device must be auto or one that this machine has ({', '.join(available)}), got {name!r}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} does not exist; this machine has {torch.cuda.device_count()} CUDA device(s), "
            "counted from cuda:0"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> str:
    """The type of computations; `auto` is bfloat16 on CUDA and float32 elsewhere. Weights stay float32."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return name


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """The context in which a model computes in dtype. Parts of a model that need float32 cast explicitly."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Peak FLOP/s of a GPU in PEAK_FLOPS with this type of computations; None for any other device."""
    if device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device), {}).get(dtype)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in 1e9 bytes: of the CUDA device, or elsewhere of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    with contextlib.suppress(OSError):  # Linux; getrusage there also counts the process that started this one
        if found := re.search(r"VmHWM:\s+(\d+) kB", (PROC / "self/status").read_text()):
            return int(found[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak_memory(device: torch.device) -> bool:
    """Let peak_memory_gb begin anew from what is held now; False if the system cannot (macOS)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROC / "self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def matmul_rate(device: torch.device, repeats: int = 3) -> float:
    """FLOP/s of a fixed product of matrices: how fast this device is at this moment, beside all other work.

    The product is (512, 512) @ (512, 512) on a CPU, about 0.01 s, and (4096, 4096) @ (4096, 4096) elsewhere, in
    float32, with torch's number of threads. The rate is that of all repeats together, because a median would hide the moments
    in which other programs had the cores.
    """
    size = 512 if device.type == "cpu" else 4096
    a = torch.full((size, size), 0.5, device=device)
    torch.mm(a, a)  # a warm-up
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, a)
    synchronize(device)
    return 2 * size**3 * repeats / (time.perf_counter() - began)


def available_memory(device: torch.device) -> int:
    """Free bytes of a CUDA device, or elsewhere of the RAM, within the limits of the process and its cgroups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # Linux: free memory and caches that can be dropped
        free = re.search(r"MemAvailable: +(\d+) kB", (PROC / "meminfo").read_text())
        limits += [1024 * int(free[1])] if free else []
    if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:  # ulimit -v
        with contextlib.suppress(OSError):
            most -= os.sysconf("SC_PAGE_SIZE") * int((PROC / "self/statm").read_text().split()[0])
        limits.append(most)
    return max(0, min(limits + list(_rooms_of_cgroups())))


def _rooms_of_cgroups() -> Iterator[int]:
    """For each memory limit on the way from the root to this process: what is left of it.

    Files in memory count as free, because the system drops them first.
    """
    with contextlib.suppress(OSError):
        found = (PROC / "self/cgroup").read_text()
        for controller, path in re.findall(r"^\d+:(?:|.*\b(memory)\b.*):/(.*)", found, re.M):
            limit = "memory.limit_in_bytes" if controller else "memory.max"  # cgroups 1 and 2
            for folder in (CGROUPS / controller / path / limit).parents:
                with contextlib.suppress(OSError, ValueError):  # ValueError: "max", which is no limit
                    most = int((folder / limit).read_text())
                    used = re.search(r"^(?:anon|total_rss) (\d+)", (folder / "memory.stat").read_text(), re.M)
                    yield most - int(used[1] if used else 0)
