"""What is wanted of a text: the hub's generation_config.json, under what the command line says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.registry import UserError, nearest

NEW = 256  # tokens written where nobody names a number

# Fields of the file that change what is written and that are not implemented, with the value that changes nothing.
FIXED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_decoder_ids": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}
# fmt: off
HARMLESS = frozenset({  # change no text, or are read elsewhere
    "_from_model_config", "_commit_hash", "assistant_confidence_threshold", "assistant_ensemble_weight",
    "assistant_lookbehind", "bos_token_id", "cache_config", "cache_implementation", "compile_config",
    "continuous_batching_config", "decoder_start_token_id", "disable_compile", "is_assistant", "low_memory",
    "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "return_dict_in_generate", "speculation_type",
    "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
})
READ = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "do_sample", "early_stopping", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beams", "num_return_sequences", "pad_token_id", "renormalize_logits",
    "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p",
})
# fmt: on


@dataclass(frozen=True)
class Settings:
    """Hashable: a constant of the programs. Where a number switches something off, that is its default."""

    new: int  # tokens to write at most
    pad: int
    eos: tuple[int, ...] = ()  # tokens that end a text
    sample: bool = False  # draw tokens, else take the likeliest
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0  # of prompt and text
    min_new_tokens: int = 0
    never: tuple[int, ...] = ()  # tokens that are not written
    suppressed: tuple[int, ...] = ()  # the same, whatever was forced before
    suppressed_first: tuple[int, ...] = ()  # the same of the first token
    forced_first: tuple[int, ...] = ()  # what the first token is one of
    forced_last: tuple[int, ...] = ()  # the same of the last, where the text has not ended before
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize: bool = False  # of a search: probabilities of what may be written add up to 1 again

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                bound = f"at least {least}" if most == float("inf") else f"between {least} and {most}"
                raise UserError(f"{_FLAGS.get(name, name)}={value!r} must be a number, {bound}")
        if self.beams > 1 and self.sample:
            raise UserError(
                f"beams={self.beams} with sampling is not supported; set --beams=1, or --temperature=0 for a search "
                "without drawing"
            )
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f'early_stopping={self.early_stopping!r} must be true, false or "never"')


_RANGES = (
    ("new", 1, float("inf")),
    ("temperature", 1e-6, float("inf")),
    ("top_k", 0, float("inf")),
    ("top_p", 1e-6, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 1e-6, float("inf")),
    ("no_repeat_ngram_size", 0, float("inf")),
    ("min_length", 0, float("inf")),
    ("min_new_tokens", 0, float("inf")),
    ("beams", 1, float("inf")),
    ("length_penalty", float("-inf"), float("inf")),
)
_FLAGS = {"new": "max_new_tokens"}


def read(
    hub: Mapping[str, Any], flags: Mapping[str, Any], *, pad: int, eos: tuple[int, ...] = (), decoder: bool
) -> tuple[Settings, list[str]]:
    """(settings, what there is to say) of a generation_config.json and flags, of which None leave it to the file.

    `pad` and `eos` are those of the tokenizer, for a file that names none. `decoder`: the text goes on from its prompt.
    Raises UserError for a field that is not supported and a value that is out of range.
    """
    wrong = {name: hub[name] for name, neutral in FIXED.items() if name in hub and hub[name] not in neutral}
    if wrong:
        listed = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise UserError(f"generation_config.json: not supported: {listed}; remove it from the file to do without")
    strange = sorted(set(hub) - READ - HARMLESS - set(FIXED))
    said = [f"generation_config.json: not read: {', '.join(strange)}{nearest(strange[0], READ)}"] if strange else []
    if hub.get("num_return_sequences") not in (None, 1):
        said.append(f"num_return_sequences={hub['num_return_sequences']}: only the best text is given")
    given = {name: value for name, value in hub.items() if value is not None}
    given |= {name: value for name, value in flags.items() if value is not None}
    sample, temperature = _drawing(hub, flags, given)
    numbers = {name: given[name] for name in _NUMBERS if name in given}
    if not sample:
        numbers = {name: value for name, value in numbers.items() if name not in ("top_k", "top_p", "min_p")}
    elif "top_k" not in given:
        numbers["top_k"] = 50  # as in transformers
    settings = Settings(
        new=_new(given, decoder),
        pad=given.get("pad_token_id", pad),
        eos=_ids(given, "eos_token_id") or eos,
        sample=sample,
        temperature=temperature,
        beams=given.get("num_beams", 1),
        early_stopping=given.get("early_stopping", False),
        renormalize=bool(given.get("renormalize_logits", False)),
        never=_single(given),
        suppressed=_ids(given, "suppress_tokens"),
        suppressed_first=_ids(given, "begin_suppress_tokens"),
        # A prompt of one token is what transformers forces the second of; those are of encoder-decoders.
        forced_first=() if decoder else _ids(given, "forced_bos_token_id"),
        forced_last=_ids(given, "forced_eos_token_id"),
        **numbers,
    )
    return settings, said


_NUMBERS = (
    *("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens"),
    "length_penalty",
)


def _drawing(hub: Mapping[str, Any], flags: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[bool, float]:
    """Whether tokens are drawn, and the temperature. A flag that only matters when they are asks for it."""
    temperature = flags.get("temperature")
    if temperature == 0:
        return False, 1.0
    asked = any(flags.get(name) is not None for name in ("temperature", "top_k", "top_p", "min_p"))
    sample = asked or bool(given.get("do_sample", False))
    if sample and not asked and flags.get("num_beams") is not None and flags["num_beams"] > 1:
        return False, 1.0  # of a search that is asked for the file's wish to draw is no part
    return sample, given.get("temperature", 1.0) if sample else 1.0


def _new(given: Mapping[str, Any], decoder: bool) -> int:
    if "max_new_tokens" in given:
        return given["max_new_tokens"]
    # The file's max_length counts the token that a decoder of a source begins with; of a prompt it says nothing.
    return NEW if decoder or "max_length" not in given else max(1, given["max_length"] - 1)


def _ids(given: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A token id or a list of them."""
    value = given.get(name)
    ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
        raise UserError(f"{name}={value!r} must be a token id, or a list of them")
    return ids


def _single(given: Mapping[str, Any]) -> tuple[int, ...]:
    words = given.get("bad_words_ids") or []
    if any(len(word) != 1 for word in words):
        raise UserError(f"generation_config.json: bad_words_ids={words!r}: words of several tokens are not supported")
    eos = _ids(given, "eos_token_id")
    return tuple(word[0] for word in words if word[0] not in eos)
