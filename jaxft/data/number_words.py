"""The embedded data set of translation: numbers in German words and in English words.

A small language, but a language: "dreiundzwanzigtausendsieben" is "twenty-three thousand and seven", where German
writes one word and says the units before the tens. It needs no data, and what is right is beyond dispute; numbers of
the test were never seen in training.
"""

import math
import random

from jaxft.data.files import point
from jaxft.data.source import Dataset, Split, fingerprint
from jaxft.registry import UserError

RELEASE = 1
MOST = 999_999
SHARES = {"test": 0.05, "validation": 0.05}  # of all numbers; the others are for training

GERMAN = (
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
)
GERMAN_TENS = ("", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")
ENGLISH = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
ENGLISH_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(*, numbers: int) -> Dataset:
    """So many distinct numbers up to MOST, short ones as often as long ones; columns number, de, en."""
    if not 3 <= numbers <= MOST // 2:
        raise UserError(f"data.numbers={numbers} must be 3 to {MOST // 2:,}: distinct ones below {MOST + 1:,}")
    rng = random.Random(0)
    chosen: dict[int, None] = {}
    while len(chosen) < numbers:
        chosen[int(math.exp(rng.uniform(0, math.log(MOST + 1))))] = None
        chosen[rng.randint(0, MOST)] = None
    parts: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    for number in list(chosen)[:numbers]:
        parts[_split_of(number)].append({"number": number, "de": german(number), "en": english(number)})
    identity = {name: fingerprint(release=RELEASE, numbers=numbers, split=name) for name in parts}
    splits = {name: _split(name, rows, identity[name]) for name, rows in parts.items()}
    return Dataset("number_words", splits, {})


def german(number: int) -> str:
    """A number up to MOST in words. The one of `einundzwanzig` and `eintausend` has no s, that of `hunderteins` has."""
    thousands, rest = divmod(number, 1000)
    hundreds = rest // 100
    if thousands:
        words = german(thousands)
        return (words[:-1] if thousands % 100 == 1 else words) + "tausend" + (german(rest) if rest else "")
    if hundreds:
        rest %= 100
        return ("ein" if hundreds == 1 else GERMAN[hundreds]) + "hundert" + (german(rest) if rest else "")
    if number < 20:
        return GERMAN[number]
    tens, units = divmod(number, 10)
    return (f"{'ein' if units == 1 else GERMAN[units]}und" if units else "") + GERMAN_TENS[tens]


def english(number: int) -> str:
    """A number up to MOST in words, with an "and" before what is below a hundred."""
    thousands, rest = divmod(number, 1000)
    if thousands:
        joint = " and " if 0 < rest < 100 else " "
        return f"{english(thousands)} thousand" + (f"{joint}{english(rest)}" if rest else "")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{ENGLISH[hundreds]} hundred" + (f" and {english(rest)}" if rest else "")
    if number < 20:
        return ENGLISH[number]
    tens, units = divmod(number, 10)
    return ENGLISH_TENS[tens] + (f"-{ENGLISH[units]}" if units else "")


def _split_of(number: int) -> str:
    place = point(str(number).encode())
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def _split(name: str, rows: list[dict[str, object]], identity: str) -> Split:
    return Split(rows, identity, lambda i: f"number_words {name}:{i}")
