"""XLM-RoBERTa: RoBERTa with the vocabulary of a hundred languages, under names of its own (Conneau et al. 2020)."""

from collections.abc import Mapping
from typing import Any

from jaxft.models import roberta
from jaxft.models.roberta import *  # noqa: F403

MODEL_TYPE = "xlm-roberta"
HF_ARCHITECTURES = {head: f"XLM{name}" for head, name in roberta.HF_ARCHITECTURES.items()}


def config_from_hf(hf: Mapping[str, Any]) -> roberta.Config:
    """As RoBERTa's, but for the vocabulary that a file may leave out."""
    return roberta.config_from_hf({"vocab_size": 30522, **hf})
