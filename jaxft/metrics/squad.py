"""Exact match and F1 of answers in a text, by the rules of SQuAD or of CMRC 2018: each is the best over all answers.

"squad": articles, punctuation, case and white space do not count; F1 is of words in any order (Rajpurkar et al. 2016).
"cmrc": for Chinese. The marks of MARKS and case do not count; F1 is over the longest piece in common, in characters of
Chinese and words of other scripts (Cui et al. 2019). The official script parts such words by NLTK; here they are what
WORD finds, which parts English contractions less ("don't" is one word).
A question without answers is answered by "" alone, which then has both scores in full (Rajpurkar et al. 2018).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Words = Callable[[str], list[str]]

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLE = re.compile(r"\b(a|an|the)\b")
MARKS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001
WORD = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+(?:['.,][^\W\u4e00-\u9fa5]+)*|[^\w\s]")


def squad_words(text: str) -> list[str]:
    return ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split()


def cmrc_words(text: str) -> list[str]:
    return WORD.findall(text.lower().translate(MARKS))


def squad_text(text: str) -> str:
    return " ".join(squad_words(text))


def cmrc_text(text: str) -> str:
    return text.lower().strip().translate(MARKS)


def in_common(found: Sequence[str], truth: Sequence[str]) -> int:
    """How many words both have, each as often as both have it."""
    return (Counter(found) & Counter(truth)).total()


def longest_piece(found: Sequence[str], truth: Sequence[str]) -> int:
    """Words of the longest run that stands in both."""
    ends = np.zeros(len(truth) + 1, np.int64)  # of the runs that end at a word of `found` and each of `truth`
    longest = 0
    for word in found:
        ends[1:] = np.where([word == other for other in truth], ends[:-1] + 1, 0)
        longest = max(longest, int(ends.max()))
    return longest


# How a text is compared whole, what its words are, and how many of these two texts share.
RULES: dict[str, tuple[Callable[[str], str], Words, Callable[[Sequence[str], Sequence[str]], int]]] = {
    "squad": (squad_text, squad_words, in_common),
    "cmrc": (cmrc_text, cmrc_words, longest_piece),
}


def score(prediction: str, answers: Sequence[str], rules: str = "squad") -> tuple[float, float]:
    """(exact match, F1) of a prediction, the best over `answers`; where none says anything only "" is right."""
    whole, words, shared = RULES[rules]
    found, said = whole(prediction), words(prediction)
    truths = [answer for answer in answers if whole(answer)] or [""]
    exact = float(any(whole(answer) == found for answer in truths))
    return exact, max(_f1(said, words(answer), shared) for answer in truths)


def _f1(found: Sequence[str], truth: Sequence[str], shared: Callable[[Sequence[str], Sequence[str]], int]) -> float:
    if not found or not truth:
        return float(not found and not truth)
    both = shared(found, truth)
    return 2 * both / (len(found) + len(truth))


def exact_match(predictions: Sequence[str], answers: Sequence[Sequence[str]], rules: str = "squad") -> float:
    """Share of the predictions that are one of their answers."""
    return float(np.mean([score(*both, rules)[0] for both in zip(predictions, answers, strict=True)]))


def f1(predictions: Sequence[str], answers: Sequence[Sequence[str]], rules: str = "squad") -> float:
    """Mean F1 of the predictions."""
    return float(np.mean([score(*both, rules)[1] for both in zip(predictions, answers, strict=True)]))
