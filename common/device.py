"""Where a run computes and in which precision."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import torch

# Dense bf16 peak in FLOP/s, from NVIDIA's data sheets (without sparsity); the key is part of the name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


def choose_device(name: str) -> torch.device:
    """`auto` takes cuda, else mps, else cpu; a named device that is not there is an error."""
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
            f"device {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> str:
    """`auto` computes in bfloat16 on CUDA and in float32 elsewhere; weights are always float32."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return name


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """The one place where precision is lowered; float32 islands in the models stay what they are."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a GPU that we know, to put utilisation on; None where we do not."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory used so far, in 1e9 bytes: of a CUDA device; elsewhere of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def available_memory(device: torch.device) -> int:
    """Bytes that a run could take now: free on a CUDA device; of the RAM otherwise, within the limit
    of the container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # Linux: what is free, or would be without caches
        free = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [1024 * int(free[1])] if free else []
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroup 2 and 1
        with contextlib.suppress(OSError, ValueError):  # "max": there is none
            limits.append(int((Path("/sys/fs/cgroup") / limit).read_text()))
    return min(limits)
