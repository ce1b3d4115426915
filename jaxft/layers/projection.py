"""Learned projections from a narrow network's vectors to those of a wide one (Jiao et al. 2020, TinyBERT).

It has a Config and a Model as a family of models/ has, for companions.py, and is none: the hub knows nothing of it.
"""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from jaxft.layers.parameter import FanIn, parameter
from jaxft.layers.stack import Execution

MODEL_TYPE = "projection"


@dataclass(frozen=True)
class Config:
    pairs: int  # of layers, each of which has its own
    narrow: int
    wide: int

    vocab = 0


class Model(nnx.Module):
    """kernel [N, D, P]."""

    def __init__(self, cfg: Config, head: str, outputs: int, how: Execution):
        self.kernel = parameter((cfg.pairs, cfg.narrow, cfg.wide), ("N", "D", "P"), FanIn(1.0))


def flops_per_token(cfg: Config, attended: float, read: float) -> float:
    """Forward and backward."""
    return 6.0 * cfg.pairs * cfg.narrow * cfg.wide


def project(kernel: Any, x_BLD: Any) -> Any:
    """[B, L, D] -> [B, L, P]."""
    return x_BLD @ kernel.astype(x_BLD.dtype)
