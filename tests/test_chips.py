import re
from types import SimpleNamespace

import jax
import pytest

from jaxft.chips import CHIPS, peak_flops

KINDS = {
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "A100-SXM4-40GB": 312e12,
    "Tesla T4": 65e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
}


def peak(kind):
    return peak_flops(SimpleNamespace(device_kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_each_variant_has_its_own_peak(kind):
    assert peak(kind) == KINDS[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA L400", "NVIDIA H100"),
        *(
            "NVIDIA T400 4GB",
            "NVIDIA GH200 480GB",
            "NVIDIA H20",
            "NVIDIA RTX A1000",
            "TPU v4 lite",
            "TPU v3",
            "cpu",
            "",
        ),
    ],
)
def test_what_is_not_known_for_sure_has_none(kind):
    assert peak(kind) is None
    assert peak_flops(jax.devices()[0]) is None


def test_no_two_names_match_one_chip():
    for kind in KINDS:
        assert sum(re.fullmatch(name, kind) is not None for name in CHIPS) == 1, kind
