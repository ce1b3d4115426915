"""Peak matmul rates of chips, for model FLOP utilisation."""

from typing import Any

# Dense bfloat16 FLOP/s of one chip, by a part of jax's device_kind. TPU figures: cloud.google.com TPU system pages;
# NVIDIA: data sheets, dense (without sparsity). Longer names first: "TPU v5 lite" is not a "TPU v5".
PEAK = {
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU7x": 2307e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "T4": 65e12,
}


def peak_flops(device: Any) -> float | None:
    """bfloat16 FLOP/s of one device, or None where it is not known (CPUs among them)."""
    return next((peak for name, peak in PEAK.items() if name in device.device_kind), None)
