"""How the `peft` library sees a network: linear layers by name, some of them one where there are several here.

adapter_config.json          which method, of which layers, with which options
adapter_model.safetensors    base_model.model.<layer>.lora_A.weight and the like; layers that train whole as they are
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.registry import UserError

PREFIX = "base_model.model."
UNWRAPPED = "base_model."  # of methods that leave the layers of a model as they are
Tensors = dict[str, np.ndarray]
# Fields of adapter_config.json: of every method; which layers, which the tensors tell; how training began and went.
FIELDS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "modules_to_save", "fan_in_fan_out", "ensure_weight_tying"),
    *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform", "feedforward_modules", "bias"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("init_lora_weights", "init_ia3_weights", "init_weights", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "megatron_core", "qalora_group_size"),
    *("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
    *("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules"),
    *("encoder_hidden_size", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs"),
}


@dataclass(frozen=True)
class Part:
    """A layer here, and where its outputs lie among those of the hub's."""

    path: str
    start: int
    outputs: int

    @property
    def within(self) -> slice:
        return slice(self.start, self.start + self.outputs)


@dataclass(frozen=True)
class Module:
    """A linear layer of the hub's network; `names` has one for each index into the stacked axes of its parts.

    `transposed`: its weight is stored [in, out] there.
    """

    names: Mapping[tuple[int, ...], str]
    parts: tuple[Part, ...]
    inputs: int
    outputs: int
    transposed: bool

    def named(self) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index, name with the prefix of peft's tensors)."""
        for index, name in self.names.items():
            yield index, PREFIX + name


def check_fields(section: Mapping[str, Any], folder: str) -> None:
    """Raises UserError for a field that is set and nobody here knows: what it does need not show in the tensors."""
    strange = {key: value for key, value in section.items() if key not in FIELDS and value not in (None, False, {}, [])}
    if strange:
        shown = ", ".join(f"{key}={value!r}" for key, value in strange.items())
        raise UserError(f"{folder}: {shown} of adapter_config.json is not supported; merge the adapter with peft")


def changed(modules: Sequence[Module], added: Mapping[str, Any], name: str) -> list[Module]:
    """The modules that have a part with a parameter of that name in its slot."""
    return [module for module in modules if any(f"{part.path}/adapter/{name}" in added for part in module.parts)]


def suffixes(chosen: Sequence[Module], known: Sequence[Module]) -> dict[str, Module]:
    """What to call the chosen modules in target_modules: the shortest ends of names that mean no other one.

    Where every end of a name means others too, each layer's whole name.
    """
    everything = {name: module for module in known for name in module.names.values()}
    wanted = {name for module in chosen for name in module.names.values()}
    found: dict[str, Module] = {}
    for module in chosen:
        for name in module.names.values():
            parts = name.split(".")
            ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
            short = next(end for end in ends if meant(end, everything) <= wanted)
            found.setdefault(short, module)
    return found


def meant(end: str, names: Mapping[str, Any]) -> set[str]:
    return {name for name in names if name == end or name.endswith(f".{end}")}


def taken(tensors: Tensors, names: Mapping[tuple[int, ...], str], ending: str) -> dict[tuple[int, ...], np.ndarray]:
    """The tensors of one layer after another that end so, taken out of `tensors`."""
    there = {index: f"{PREFIX}{name}.{ending}" for index, name in names.items()}
    return {index: tensors.pop(name) for index, name in there.items() if name in tensors}


def stacked(
    found: Mapping[tuple[int, ...], np.ndarray],
    names: Mapping[tuple[int, ...], str],
    shape: tuple[int, ...],
    fill: float = 0.0,
) -> np.ndarray:
    """One array of `shape` for each of `names`, in the stacked axes that they have; `fill` where there is none."""
    lead = tuple(max(index[axis] for index in names) + 1 for axis in range(len(next(iter(names)))))
    whole = np.full((*lead, *shape), fill, np.float32)
    for index, array in found.items():
        whole[(*index, *(slice(0, size) for size in array.shape))] = array
    return whole


def check_shape(name: str, array: np.ndarray, shape: Sequence[int | None], folder: str) -> None:
    """Raises UserError where a tensor is not of that shape (None: any size)."""
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("rank" if size is None else str(size) for size in shape)
        raise UserError(
            f"{folder} is an adapter of another model: {name} is [{', '.join(map(str, array.shape))}], and this one "
            f"needs [{wanted}]; give it with the model that its adapter_config.json names"
        )
