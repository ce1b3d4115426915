"""jaxft: pretrain and fine-tune Hugging Face language models in JAX."""

from jaxft import numerics

# Before anything imports jax: old jaxlib wheels miscompute reductions on CPUs unless a flag is set (numerics.py).
numerics.prepare()

__version__ = "0.1.0"
