"""What a step costs: floating-point operations and memory, counted on the meta device, and what a device could do."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mim_core.data.views import entries
from mim_core.methods.build import build_method, working
from mim_core.parts.tokenizer import zeros

if TYPE_CHECKING:
    from mim_core.runs.run import Run


PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s by a part of the device's name, from NVIDIA's data sheets; the first that fits counts. RTX cards
with fp32 accumulation."""


def peak_flops(device: torch.device) -> float | None:
    """A GPU's dense bf16 FLOP/s by its data sheet; None where none is known, as for CPUs."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The same by the device's name: whole words, and neither slices (MIG) nor laptops, which have less."""
    if re.search(r"\bMIG\b|Laptop|Mobile|Max-Q", name):
        return None
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{re.escape(part)}\b", name)), None)


@cache
def measured_flops(device: torch.device, precision: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of large matrix products on this device: a peak that can be reached, for devices without a data sheet.

    It is measured once in a process.
    """
    from torch.utils.benchmark import Timer

    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=seconds).median


def step_cost(run: Run, samples: int = 2) -> tuple[int, int, Any]:
    """(floating-point operations of a forward and backward pass, bytes of activations kept for the backward pass,
    mask), the first two per sample.

    A multiplication and an addition count as two operations, as torch's counter has it.
    """
    with torch.device("meta"):
        method = build_method(run.config, run.registry)
        sample = zeros(entries(run.source.shapes, method.views()), getattr(method.tokenizer, "ids", {}), samples)
        sample["key"] = torch.zeros(samples, dtype=torch.int64)
        method.train()
        owned = {tensor.untyped_storage()._cdata for tensor in [*method.parameters(), *method.buffers()]}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in owned:  # views of one storage are kept once; weights are counted elsewhere
                kept[storage._cdata] = storage.nbytes()
            return tensor

        counter = FlopCounterMode(display=False)
        with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            with working(method):
                prepared = method.prepare(sample)
                loss = method(prepared).loss
            loss.backward()
    return counter.get_total_flops() // samples, sum(kept.values()) // samples, getattr(prepared, "mask", None)


def power(run: Run, samples_per_second: float) -> dict[str, float]:
    """Floating-point operations per second over all devices, their share of the devices' peak (MFU), and the most
    memory that this rank's GPU held, for the metrics; what is not known is left out."""
    metrics: dict[str, float] = {}
    if run.cost is not None:
        metrics["flops_per_second"] = run.cost * samples_per_second
        peak = peak_flops(run.device)
        if peak is not None:
            metrics["mfu"] = metrics["flops_per_second"] / (peak * run.world.size)
    if run.device.type == "cuda":
        metrics["memory"] = torch.cuda.max_memory_allocated(run.device)
    return metrics
