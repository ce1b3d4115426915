"""Peak matmul rates of chips, for model FLOP utilisation."""

import re
from typing import Any

# Dense FLOP/s of one chip in bfloat16 (T4: float16, it has no bfloat16), by all of jax's device_kind: variants of one
# name differ by a factor of up to three, and a slice of a chip (MIG) is not the chip. TPU figures: cloud.google.com TPU
# system pages; NVIDIA: data sheets, without sparsity.
PEAK = {
    r"TPU v4": 275e12,
    r"TPU v5 lite|TPU v5e": 197e12,
    r"TPU v5|TPU v5p": 459e12,
    r"TPU v6 lite|TPU v6e": 918e12,
    r"TPU7x": 2307e12 / 2,  # of the chip; each of its two halves is a device
    r"NVIDIA H100 80GB HBM3": 989e12,  # SXM
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H100 NVL": 835e12,
    r"NVIDIA H200": 989e12,
    r"NVIDIA H200 NVL": 835e12,
    r"NVIDIA B200": 2250e12,
    r"(NVIDIA )?A100[- ](SXM4-|PCIE-)?(40|80)GB( PCIe)?": 312e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA L40": 181e12,
    r"NVIDIA L40S": 362e12,
    r"(NVIDIA|Tesla) T4": 65e12,
}


def peak_flops(device: Any) -> float | None:
    """FLOP/s of one device, or None where it is not known (CPUs among them): no utilisation rather than a wrong one."""
    return next((peak for name, peak in PEAK.items() if re.fullmatch(name, device.device_kind)), None)
