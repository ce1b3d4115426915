"""Personal data, replaced by marks: what has the form of an address or a number that belongs to somebody.

Forms only: names and street addresses need more than patterns. Numbers that carry a check digit are tested by it.
"""

import ipaddress
import re
from collections.abc import Callable

from jaxft.corpora.document import Document, Removed

# Lengths are limited, so that no text makes the search slow.
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d))"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
# International (+49 30 1234567) or North American ((555) 123-4567): digits alone are rarely a telephone.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,5}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})"
    r"(?![\w-]|\.\d)"
)


def pii(document: Document, *, email: str, ip: str, iban: str, card: str, phone: str) -> Document | Removed:
    """Each option is the mark that replaces what is found, such as "<EMAIL>"; "" leaves that kind alone.

    Card numbers must pass Luhn's test (ISO/IEC 7812-1), IBANs the remainder 97 (ISO 13616), IP addresses must be ones
    that are reachable from everywhere.
    """
    text, done = document.text, {}
    kinds: tuple[tuple[str, str, re.Pattern[str], Callable[[str], bool]], ...] = (
        ("email", email, _EMAIL, lambda found: True),
        ("iban", iban, _IBAN, is_iban),
        ("card", card, _CARD, is_card),
        ("ip", ip, _IP, is_public_ip),
        ("phone", phone, _PHONE, lambda found: 8 <= sum(map(str.isdigit, found)) <= 15),
    )
    for kind, mark, pattern, passes in kinds:
        if not mark:
            continue
        count = 0

        def masked(match: re.Match[str], mark: str = mark, passes: Callable[[str], bool] = passes) -> str:
            nonlocal count
            size = _longest(match[0], passes)
            if not size:
                return match[0]
            count += 1
            return mark + match[0][size:]

        text = pattern.sub(masked, text)
        done[kind] = count
    return document.changed(text, **done)


def _longest(found: str, passes: Callable[[str], bool]) -> int:
    """Characters from the start of a match to the last border of its groups up to which it passes; 0: to none.

    What follows a number may look like more of it: the date behind that of a card, a colon behind an address.
    """
    while found and not passes(found):
        found = found[: max(map(found.rfind, " -:"))] if any(border in found for border in " -:") else ""
    return len(found)


def is_card(found: str) -> bool:
    """Whether a text has 13 to 19 digits and they pass Luhn's test."""
    digits = [int(one) for one in found if one.isdigit()][::-1]
    doubled = [2 * one - 9 if one > 4 else 2 * one for one in digits[1::2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


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
