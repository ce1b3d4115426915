# ruff: noqa: RUF001 - texts in several scripts
"""What holds for every registered rule, and what each is for, on examples worked out by hand."""

import pytest

from configs.prepare import get_config
from jaxft.corpora import RULES
from jaxft.corpora.document import Document, Removed
from jaxft.registry import bind

SECTIONS = get_config("files").to_dict()["rules"]
PROSE = (
    "It was a bright cold day in April, and the clocks were striking thirteen. Winston slipped quickly through the "
    "glass doors of the mansions, though not quickly enough to prevent a swirl of dust that came along with him.\n\n"
    "The hallway smelt of cabbage and of old rag mats. At one end of it a poster, too large for indoor display, had "
    "been tacked to the wall; it would have to be seen by everyone who went up to the seventh floor."
)
CHINESE = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。"
    "汉朝自高祖斩白蛇而起义，一统天下。"
)
# rule -> (options that are not those of the config, text, what comes of it: a text, or the reason it goes)
CASES = {
    "unicode": [
        ({}, "Der MÃ¼ller ist schÃ¶n", "Der Müller ist schön"),
        ({}, "schön und gut", "schön und gut"),
        ({"mojibake": False}, "MÃ¼ller", "MÃ¼ller"),
        ({}, "cafe\u0301", "café"),
        ({"form": "NFKC"}, "ＡＢＣ １２", "ABC 12"),
        ({"form": ""}, "cafe\u0301", "cafe\u0301"),
    ],
    "control": [
        ({}, "one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ({}, "\ufeffzero\u200bwidth soft\u00adhyphen \x1b[31mred\ttab", "zerowidth softhyphen [31mred\ttab"),
        ({}, "نمی\u200cخواهم 👩\u200d💻", "نمی\u200cخواهم 👩\u200d💻"),
        ({}, "ab\x01\x02\x03 cd", "control characters"),
        ({"most": 0.5}, "ab\x01\x02\x03 cd", "ab cd"),
        ({}, "lost \ufffd\ufffd\ufffd", "control characters"),
    ],
    "whitespace": [
        ({}, "  one  \n\n\n\n two\t \n", "one\n\n two"),
        ({"runs": True}, "a  b\tc\n  d", "a b c\n d"),
        ({}, " \n\t\n", "empty"),
    ],
    "length": [
        ({"min_characters": 5}, "abcd", "too short"),
        ({"min_characters": 5, "max_characters": 5}, "abcde", "abcde"),
        ({"min_characters": 0, "max_characters": 5}, "abcdef", "too long"),
    ],
    "language": [
        ({}, PROSE, PROSE),
        ({}, CHINESE, "language zh"),
        ({"keep": ("de", "zh")}, CHINESE, CHINESE),
        ({}, "Ein Mann mit einem Hut steht vor dem Haus und spricht mit einer Frau.", "language de"),
        ({"keep": (), "confidence": 0.999}, "ja ok", "language not sure"),
    ],
    "quality": [
        ({}, PROSE, PROSE),
        ({"min_words": 4}, "one two three", "too few words"),
        ({"min_words": 0}, "", "too few words"),
        ({"min_words": 1, "bullets": 0.6, "min_word_length": 1.0}, "•one\n•\nthree four", "lines with bullets"),
        ({"min_words": 1, "min_word_length": 1.0}, "-one\n*two\n–three", "-one\n*two\n–three"),
        ({"min_words": 0, "max_words": 2}, "one two three", "too many words"),
        ({"min_words": 1}, "a b c d efg", "words too short"),  # 7 characters in 5 words: 1.4
        ({"min_words": 1, "min_word_length": 1.4}, "a b c d efg", "a b c d efg"),
        ({"min_words": 1}, "incomprehensibilities notwithstanding", "words too long"),
        ({"min_words": 1, "symbols": 0.2}, "# one #two three four", "too many hash signs"),  # 2 of 5 words
        ({"min_words": 1, "symbols": 0.4}, "# one #two three four", "# one #two three four"),
        ({"min_words": 1, "symbols": 0.2}, "one... two… three four", "too many ellipses"),
        (
            {"min_words": 1, "bullets": 0.6, "min_word_length": 1.0},
            "- one\n• two\nthree four",
            "lines with bullets",
        ),  # 2 of 3 lines
        (
            {"min_words": 1, "bullets": 0.67, "min_word_length": 1.0, "letters": 0.6},
            "- one\n• two\nthree",
            "- one\n• two\nthree",
        ),
        ({"min_words": 1, "symbols": 9.0}, "one...\nthree four five", "lines that break off"),  # 1 of 2 lines
        ({"min_words": 1, "min_word_length": 1.0}, "one 22 33 four", "words without letters"),  # 2 of 4
        ({"min_words": 1, "letters": 0.5, "min_word_length": 1.0}, "one 22 33 four", "one 22 33 four"),
        ({"min_words": 40}, CHINESE, CHINESE),  # 64 characters: as 43 words
        ({"min_words": 44}, CHINESE, "too few words"),
    ],
    "stop_words": [
        ({}, PROSE, PROSE),
        ({}, "THE cat and dog", "THE cat and dog"),
        ({}, "the the the theme", "too few stop words"),  # one word, whatever how often
        ({"least": 0}, "nothing", "nothing"),
    ],
    "repetition": [
        ({}, PROSE, PROSE),
        ({}, "one line\nanother here\none line\none line", "repeated lines"),  # 2 of 4
        ({"lines": 0.5, "line_characters": 0.4}, "ab\ncdefghij\nab\nab", "ab\ncdefghij\nab\nab"),  # 4 of 14 characters
        ({"lines": 0.5, "line_characters": 0.28}, "ab\ncdefghij\nab\nab", "characters of repeated lines"),
        (
            {"lines": 1.0, "line_characters": 1.0, "paragraphs": 0.3},
            "a b\n\nc d\n\na b",  # 1 of 3
            "repeated paragraphs",
        ),
        # "a b" twice: 4 of 10 characters; no other 2-gram comes twice.
        ({"top": (0.39,)}, "a b cd a b efgh", "most frequent 2-gram"),
        ({"top": (0.4,)}, "a b cd a b efgh", "a b cd a b efgh"),
        # The five words come back: 5 of 5 + 3 + 5 characters are there for the second time.
        ({"top": (), "duplicates": (0.38,)}, "a b c d e xyz a b c d e", "repeated 5-grams"),
        ({"top": (), "duplicates": (0.39,)}, "a b c d e xyz a b c d e", "a b c d e xyz a b c d e"),
        # Six words in a row hold two 5-grams: their four common words count once, 6 of 14 characters.
        ({"top": (), "duplicates": (0.42,)}, "a b c d e f xy a b c d e f", "repeated 5-grams"),
        ({"top": (), "duplicates": (0.43,)}, "a b c d e f xy a b c d e f", "a b c d e f xy a b c d e f"),
        ({}, CHINESE, CHINESE),
        ({}, CHINESE + CHINESE, "repeated 5-grams"),
    ],
    "pii": [
        ({}, "mail jane.doe+x@mail.example.co.uk, please", "mail <EMAIL>, please"),
        ({}, "user@localhost, @handle, a@b", "user@localhost, @handle, a@b"),
        ({}, "from 8.8.8.8 and 2001:4860:4860::8888.", "from <IP> and <IP>."),
        (
            {},
            "at 127.0.0.1, 10.0.0.1, 999.1.1.1, 1.2.3 or 12:30:45",
            "at 127.0.0.1, 10.0.0.1, 999.1.1.1, 1.2.3 or 12:30:45",
        ),
        ({}, "card 4111 1111 1111 1111", "card <CARD>"),
        ({}, "no card 4111 1111 1111 1112", "no card 4111 1111 1111 1112"),
        ({}, "IBAN DE89 3704 0044 0532 0130 00!", "IBAN <IBAN>!"),
        ({}, "4111 1111 1111 1111 12/27 or 4111-1111-1111-1111 123", "<CARD> 12/27 or <CARD> 123"),
        ({}, "BE68 5390 0754 7034 BIC KREDBEBB, ES91 2100 0418 4502 0005 1332 EUR", "<IBAN> BIC KREDBEBB, <IBAN> EUR"),
        ({}, "8.8.8.8:443, 2001:4860:4860::8888: up", "<IP>:443, <IP>: up"),
        ({}, "no IBAN DE88 3704 0044 0532 0130 00", "no IBAN DE88 3704 0044 0532 0130 00"),
        ({}, "call +49 30 123456 or (555) 123-4567 or 555-123-4567", "call <PHONE> or <PHONE> or <PHONE>"),
        ({}, "1914-1918, 3.14159, 12345678, 2026-11-25", "1914-1918, 3.14159, 12345678, 2026-11-25"),
        ({}, "+1 (555) 123-4567, +1-555-123-4567, +1.555.123.4567", "<PHONE>, <PHONE>, <PHONE>"),
        ({}, "+4915112345678, +49 (0)30 12345678, +49 30/123456-78", "<PHONE>, <PHONE>, <PHONE>"),
        ({}, "+33 1 23 45 67 89, +33 (0)1 23 45 67 89, +39 06 1234 5678", "<PHONE>, <PHONE>, <PHONE>"),
        ({}, "+86 138 0013 8000, +86-10-8888 8888, +91 98765 43210", "<PHONE>, <PHONE>, <PHONE>"),
        ({}, "+44 20 7946 0958, +81 3-1234-5678, +353 1 677 1234.", "<PHONE>, <PHONE>, <PHONE>."),
        ({}, "+1 555 123 4567 12 times, +44 20 7946 0958 2024", "<PHONE> 12 times, <PHONE> 2024"),
        ({}, "+33 1 23 45 67 89 75001 Paris, +1 555 123 4567/8", "<PHONE> 75001 Paris, <PHONE>/8"),
        ({}, "+49 30 123456 2024, +43 664 123456 12, +39-06-123456 7", "<PHONE> 2024, <PHONE> 12, <PHONE> 7"),
        ({}, "+49 30 123456 2026-11-25, +1 555 123 4567 192.168.0.1", "<PHONE> 2026-11-25, <PHONE> 192.168.0.1"),
        ({}, "+1 555 123 4567 555-123-4567 +44 20 7946 0958", "<PHONE> <PHONE> <PHONE>"),
        (
            {},
            "+10 000 000, +250 000 000 of them, +99 123 456 789",
            "+10 000 000, +250 000 000 of them, +99 123 456 789",
        ),
        (
            {},
            "+12%, C++17 12345678, +2.3522, +40.20361-075.00417",
            "+12%, C++17 12345678, +2.3522, +40.20361-075.00417",
        ),
        ({}, "25.11.2026, 11/25/2026, 2026-11-25T10:30:00+01:00", "25.11.2026, 11/25/2026, 2026-11-25T10:30:00+01:00"),
        ({}, "3.11.7, v1.22.333.4444, 10.0.19045.3803", "3.11.7, v1.22.333.4444, 10.0.19045.3803"),
        ({}, "978-3-16-148410-0, 0-306-40615-2", "978-3-16-148410-0, 0-306-40615-2"),
        ({}, "978-0-306-40000-1, 192.168.100.200", "978-0-306-40000-1, 192.168.100.200"),
        ({"email": ""}, "jane@example.com", "jane@example.com"),
    ],
}


def test_every_rule_has_a_section_in_the_config_and_cases_here():
    assert {section["name"] for section in SECTIONS.values()} == RULES.keys() == CASES.keys()


@pytest.mark.parametrize(
    ("name", "options", "text", "expected"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_rule_keeps_changes_or_removes(name, options, text, expected):
    section = next(one for one in SECTIONS.values() if one["name"] == name) | options
    rule = bind(RULES, section, name, "document")
    document = Document(text)
    result = rule(document)
    assert document == Document(text) and rule(Document(text)) == result, "a rule is a pure function"
    assert result.reason == expected if isinstance(result, Removed) else result.text == expected


def test_stop_words_are_asked_of_their_language_only():
    rule = bind(RULES, SECTIONS["stop_words"], "stop_words", "document")
    german = "Ein Mann steht vor dem Haus."
    assert isinstance(rule(Document(german)), Removed) and isinstance(rule(Document(german, "en")), Removed)
    assert rule(Document(german, "de")) == Document(german, "de")


def test_what_is_masked_is_counted_by_kind():
    rule = bind(RULES, SECTIONS["pii"], "pii", "document")
    done = rule(Document("a@example.com, b@example.com, 8.8.8.8")).done
    assert done == {"email": 2, "ip": 1}


def test_patterns_of_personal_data_do_not_hang_on_hostile_text():
    rule = bind(RULES, SECTIONS["pii"], "pii", "document")
    for text in (
        "1" * 50_000,
        "1 " * 50_000,
        "a@" * 50_000,
        "+1 (" * 50_000,
        "a." * 50_000,
        ":" * 50_000,
        "AA11 " * 20_000,
        "+1 2 3 4 5 6 7 8 9x" * 5_000,
        f"+{'1' * 40}x" * 2_000,
    ):
        assert rule(Document(text)) is not None
