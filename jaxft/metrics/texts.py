"""Scores of texts that were written, beside reference texts: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

Corpus scores of the first two are from 0 to 100, as everybody reports them; ROUGE is the mean F1 of the texts, 0 to 1.
"""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

from jaxft.registry import UserError

TOKENIZE = "13a"  # the tokenizer of words that BLEU has where nobody names another
SCORES = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
_ROUGE = ("rouge1", "rouge2", "rougeL")
NEEDED = ("sacrebleu", "rouge_score")


def require(tokenize: str, why: str) -> None:
    """Raises UserError where the libraries are not installed, and for a tokenizer that sacrebleu has not.

    `why` is what of the config asks for them.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{why} needs {' and '.join(missing)} for the scores; pip install 'jaxft[metrics]', or write no texts"
        )
    from sacrebleu.metrics.bleu import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        known = ", ".join(BLEU.TOKENIZERS)
        raise UserError(f"task.tokenize={tokenize!r} is not known to sacrebleu; known: {known}")
    try:
        _bleu(tokenize)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"task.tokenize={tokenize!r} cannot be used here: {reason}") from error


def bleu(texts: Sequence[str], references: Sequence[str], tokenize: str = TOKENIZE) -> float:
    """Corpus BLEU (Papineni et al. 2002; Post 2018)."""
    return float(_bleu(tokenize).corpus_score(list(texts), [list(references)]).score)


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, of characters up to six in a row (Popovic 2015)."""
    return float(_chrf().corpus_score(list(texts), [list(references)]).score)


def rouge1(texts: Sequence[str], references: Sequence[str], tokenize: str = TOKENIZE) -> float:
    """Words that text and reference share (Lin 2004)."""
    return rouge(texts, references, tokenize)["rouge1"]


def rouge2(texts: Sequence[str], references: Sequence[str], tokenize: str = TOKENIZE) -> float:
    """The same of two words in a row."""
    return rouge(texts, references, tokenize)["rouge2"]


def rouge_l(texts: Sequence[str], references: Sequence[str], tokenize: str = TOKENIZE) -> float:
    """The same of the longest sequence of words that both have in this order."""
    return rouge(texts, references, tokenize)["rougeL"]


def rouge(texts: Sequence[str], references: Sequence[str], tokenize: str = TOKENIZE) -> dict[str, float]:
    """All three. English words are stemmed, as is usual; of another `tokenize` than 13a its own words are compared.

    rouge-score's words are of a to z and 0 to 9: of Chinese they would leave nothing.
    """
    from rouge_score import rouge_scorer

    own = None if tokenize == TOKENIZE else _Words(tokenize)
    scorer = rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=own is None, tokenizer=own)
    totals = dict.fromkeys(_ROUGE, 0.0)
    for text, reference in zip(texts, references, strict=True):
        for name, score in scorer.score(reference, text).items():
            totals[name] += score.fmeasure
    return {name: total / len(texts) for name, total in totals.items()}


def scores(texts: Sequence[str], references: Sequence[str], tokenize: str) -> dict[str, float]:
    """All SCORES."""
    found = {"bleu": bleu(texts, references, tokenize), "chrf": chrf(texts, references)}
    return found | rouge(texts, references, tokenize)


def signatures(texts: Sequence[str], references: Sequence[str], tokenize: str) -> dict[str, str]:
    """How the scores were computed, without which they cannot be compared (Post 2018)."""
    from importlib import metadata

    found = {}
    for name, metric in (("bleu", _bleu(tokenize)), ("chrf", _chrf())):
        metric.corpus_score(list(texts)[:1], [list(references)[:1]])  # how many references there are it learns here
        found[name] = str(metric.get_signature())
    words = "stemmed" if tokenize == TOKENIZE else f"tok:{tokenize}|case:lc"
    return found | {"rouge": f"f1|{words}|rouge-score:{metadata.version('rouge-score')}"}


@functools.cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


class _Words:
    """The words of a sacrebleu tokenizer, for rouge-score."""

    def __init__(self, tokenize: str):
        self._tokenizer = _bleu(tokenize).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return self._tokenizer(text.lower().strip()).split()
