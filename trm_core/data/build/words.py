"""Where the words of a text begin, also in scripts that write no spaces between them."""

from __future__ import annotations

import re

_CJK = (
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese characters, kana
    "\U00020000-\U0003ffff"
)
_SOUTH_EAST = "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
# Marks of a letter, and the punctuation after it, stay with it.
_WORD = re.compile(rf"(?:[{_CJK}][^\w\s]*){{1,2}}|(?:[{_SOUTH_EAST}][^\w\s]*){{1,4}}|[^\s{_CJK}{_SOUTH_EAST}]+")


def word_starts(text: str) -> list[int]:
    """Where each word begins. A word is what stands between white space; in Chinese and Japanese two characters count
    as one word, in Thai, Lao, Burmese and Khmer four letters, which is about the length of their words.
    """
    return [match.start() for match in _WORD.finditer(text)]


def count_words(text: str) -> int:
    return sum(1 for _ in _WORD.finditer(text))
