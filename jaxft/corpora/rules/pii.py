"""Personal data, replaced by marks: what has the form of an address or a number that belongs to somebody.

Forms only: names and street addresses need more than patterns. Numbers that carry a check digit are tested by it.
"""

import ipaddress
import re
from collections.abc import Callable

from jaxft.corpora.document import Document, Removed
from jaxft.corpora.rules.calling_codes import plan_of

# Lengths are limited, so that no text makes the search slow.
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d))"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
# International (+49 30 1234567) or North American ((555) 123-4567): digits alone are rarely a telephone.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,15}+(?:(?:[ ./-]?\(\d{1,5}\)[ ./-]?|[ ./-])\d{1,15}+){0,8}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)
# A space behind what is written in one piece, or joined by something else than spaces: there a number may well end.
_PHONE_ENDS = re.compile(r"(?:\d{6}|[./-]\d+)(?= )")
_BORDERS = " -:./"  # of groups within a match
_BOOKS = ("978", "979")  # how their numbers begin (ISO 2108)


def pii(document: Document, *, email: str, ip: str, iban: str, card: str, phone: str) -> Document | Removed:
    """Each option is the mark that replaces what is found, such as "<EMAIL>"; "" leaves that kind alone.

    Card numbers must pass Luhn's test (ISO/IEC 7812-1), IBANs the remainder 97 (ISO 13616), IP addresses must be ones
    that are reachable from everywhere, international telephone numbers as long as their country has them.
    """
    text, done = document.text, {}
    kinds: tuple[tuple[str, str, re.Pattern[str], Callable[[str], bool]], ...] = (
        ("email", email, _EMAIL, lambda found: True),
        ("iban", iban, _IBAN, is_iban),
        ("card", card, _CARD, is_card),
        ("ip", ip, _IP, is_public_ip),
        ("phone", phone, _PHONE, is_phone),
    )
    for kind, mark, pattern, passes in kinds:
        if not mark:
            continue
        text, done[kind] = _masked(text, pattern, passes, mark)
    return document.changed(text, **done)


def _masked(text: str, pattern: re.Pattern[str], passes: Callable[[str], bool], mark: str) -> tuple[str, int]:
    """The text with `mark` in place of what passes, and how often. Behind a mark the search goes on at once."""
    pieces, at, count = [], 0, 0
    while match := pattern.search(text, at):
        size = _longest(match[0], passes)
        end = match.start() + size if size else match.end()
        pieces += [text[at : match.start()], mark] if size else [text[at:end]]
        at, count = end, count + bool(size)
    return "".join([*pieces, text[at:]]), count


def _longest(found: str, passes: Callable[[str], bool]) -> int:
    """Characters from the start of a match to the last border of its groups up to which it passes; 0: to none.

    What follows a number may look like more of it: the date behind that of a card, a colon behind an address.
    """
    while found and not passes(found):
        found = found[: max(0, *map(found.rfind, _BORDERS))]
    return len(found)


def is_phone(found: str) -> bool:
    """Whether a text that begins with "+" has as many digits as numbers of its country, and does not end before.

    Where the length is open, one of ten digits or more ends with the piece that is written without a space.
    """
    if not found.startswith("+"):
        return True  # North American, in a form that says all
    digits = _digits(found)
    plan = plan_of(digits)
    if plan is None or not max(8, plan[0]) <= len(digits) <= plan[1]:
        return False
    ends = [] if plan[0] == plan[1] else [match.end() for match in _PHONE_ENDS.finditer(found)]
    return all(len(_digits(found[:end])) < 10 for end in ends)


def _digits(found: str) -> str:
    return re.sub(r"\D", "", found.replace("(0)", ""))  # that zero is dialled within the country


def is_card(found: str) -> bool:
    """Whether a text has 13 to 19 digits that pass Luhn's test and are not those of a book."""
    digits = [int(one) for one in found if one.isdigit()][::-1]
    doubled = [2 * one - 9 if one > 4 else 2 * one for one in digits[1::2]]
    is_book = len(digits) == 13 and found.startswith(_BOOKS)
    right = (sum(digits[::2]) + sum(doubled)) % 10 == 0
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and right and not is_book


def is_iban(found: str) -> bool:
    """Whether an IBAN leaves the remainder 1 of 97, its first four characters put last and letters read as 10 to 35."""
    compact = found.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(one, 36)) for one in compact[4:] + compact[:4])) % 97 == 1


def is_public_ip(found: str) -> bool:
    """Whether an address of version 4 or 6 is one that the whole net can reach."""
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False
