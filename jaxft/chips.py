"""What chips can do: matrix products, memory, links. By them a run's utilisation is measured and a plan is judged."""

import re
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as jax sees it. None: not known, and nothing is computed from it."""

    flops: float  # dense FLOP/s in bfloat16 (T4: float16, it has no bfloat16)
    memory: float | None = None  # bytes that a program may use
    bandwidth: float | None = None  # bytes/s of that memory
    link: float | None = None  # bytes/s one way over one link to a neighbour: ICI; of NVLink all of a GPU's together
    network: float | None = None  # bytes/s of a device's share of what joins slices or hosts


# By all of jax's device_kind: variants of one name differ by a factor of up to three, and a slice of a GPU (MIG) is not
# the GPU. TPUs: the system architecture pages of cloud.google.com/tpu/docs; links and networks also "How to Scale Your
# Model", chapter 2 (jax-ml.github.io/scaling-book/tpus); memory as libtpu's compiler has it, which keeps some back.
# NVIDIA: data sheets, without sparsity; networks of eight GPUs with 400 Gbit/s each (DGX H100 and later; A100: 200).
CHIPS = {
    r"TPU v4": Chip(275e12, 31.25 * GIB, 1228e9, 45e9, 6.25e9),
    r"TPU v5 lite|TPU v5e": Chip(197e12, 15.75 * GIB, 819e9, 45e9, 3.125e9),
    r"TPU v5|TPU v5p": Chip(459e12, 95.74 * GIB, 2765e9, 90e9, 6.25e9),
    r"TPU v6 lite|TPU v6e": Chip(918e12, 31.25 * GIB, 1640e9, 90e9, 12.5e9),
    r"TPU7x": Chip(2307e12 / 2, 94.75 * GIB, 7380e9 / 2, 90e9, 6.25e9),  # each of a chip's two halves is a device
    r"NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 450e9, 50e9),  # SXM
    r"NVIDIA H100 PCIe": Chip(756e12, 80e9, 2000e9),
    r"NVIDIA H100 NVL": Chip(835e12, 94e9, 3900e9),
    r"NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9),
    r"NVIDIA H200 NVL": Chip(835e12, 141e9, 4800e9),
    r"NVIDIA B200": Chip(2250e12, 180e9, 8000e9, 900e9, 50e9),
    r"(NVIDIA )?A100-SXM4-40GB": Chip(312e12, 40e9, 1555e9, 300e9, 25e9),
    r"(NVIDIA )?A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9, 25e9),
    r"(NVIDIA )?A100[- ](PCIE-)?(40|80)GB( PCIe)?": Chip(312e12),
    r"NVIDIA L4": Chip(121e12, 24e9, 300e9),
    r"NVIDIA L40": Chip(181e12, 48e9, 864e9),
    r"NVIDIA L40S": Chip(362e12, 48e9, 864e9),
    r"(NVIDIA|Tesla) T4": Chip(65e12, 16e9, 300e9),
}


def chip(device: Any) -> Chip | None:
    """What is known of a device, or None (CPUs among them): no utilisation rather than a wrong one."""
    return next((found for name, found in CHIPS.items() if re.fullmatch(name, device.device_kind)), None)


def peak_flops(device: Any) -> float | None:
    """FLOP/s of one device in bfloat16, where they are known."""
    found = chip(device)
    return found.flops if found else None
