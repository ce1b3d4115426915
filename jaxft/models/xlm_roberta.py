"""XLM-RoBERTa: RoBERTa with the vocabulary of a hundred languages, under names of its own (Conneau et al. 2020)."""

from jaxft.models.roberta import *  # noqa: F403
from jaxft.models.roberta import HF_ARCHITECTURES as ROBERTA

MODEL_TYPE = "xlm-roberta"
HF_ARCHITECTURES = {head: f"XLM{name}" for head, name in ROBERTA.items()}
