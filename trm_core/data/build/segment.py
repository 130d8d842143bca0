"""A document as k segments (roughly sentences) of m phrases each, cut where the language has joints.

Sentences and phrases are found by punctuation and conjunctions. Too many pieces are joined with their neighbours so
that all get about the same number of words (`words` says what a word is); too few are cut again, the longest first, at
a joint if there is one and in the middle otherwise, as long as both halves keep a few words. Whatever is still missing
is padding (an empty string).
"""

from __future__ import annotations

import re
from bisect import bisect_left

from trm_core.data.build.words import count_words, word_starts

# After . ! ? … or their equivalents (Hindi, Arabic, Urdu) and closing quotes or brackets, before white space; at a line
# break or a wide gap; or after the full stop, ! or ? of Chinese and Japanese, which no space follows.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…\u0964\u061f\u06d4])[\"'\u201d\u2019)\]]*\s+|\n+|\s{3,}"
    r"|(?<=[\u3002\uff01\uff1f])(?![\u3002\uff01\uff1f…])[\"'\u201d\u2019\u300d\u300f\uff09)\]]*\s*"
)
# The last alternative: commas, semicolons and colons of Chinese and Japanese.
_PHRASE_END = re.compile(
    r"(?<=[,;:\u2013\u2014\u060c\u061b])\s+|\s+(?=\()|(?<=\))\s+|\s-{1,2}\s|\s*\.{2,}\s*"
    r"|(?<=[\uff0c\u3001\uff1b\uff1a])\s*"
)
_JOINT = re.compile(
    r"\s+(?=(?:and|but|or|so|because|that|which|who|when|while|if|as|for|with|to|by|from|in|on|at|of)\s)", re.IGNORECASE
)
_MIN_SEGMENT_WORDS = 4
_MIN_PHRASE_WORDS = 2


def segment(document: str, num_segments: int, num_phrases: int) -> list[list[str]]:
    """[num_segments][num_phrases] strings; "" is padding, always at the end. No word is lost or repeated."""
    return segment_tree(document, num_segments, num_phrases)[0]


def segment_tree(document: str, num_segments: int, num_phrases: int) -> tuple[list[list[str]], list[int]]:
    """(the phrases as `segment` gives them, the parent of each segment).

    Of the segments cut from one sentence, the first is the parent of the others and itself a child of segment 0, the
    root (-1). A segment of several whole sentences counts as its first one. Padding has no parent.
    """
    sentences = _pieces(_SENTENCE_END, document)
    segments, sentence_of = _fit(sentences, num_segments, _MIN_SEGMENT_WORDS)
    result = []
    for text in segments:
        phrases, _ = _fit(_pieces(_PHRASE_END, text), num_phrases, _MIN_PHRASE_WORDS)
        result.append(phrases + [""] * (num_phrases - len(phrases)))
    result += [[""] * num_phrases] * (num_segments - len(segments))
    parents = [-1] * num_segments
    for index in range(1, len(segments)):
        head = sentence_of.index(sentence_of[index])
        parents[index] = head if head != index else 0
    return result, parents


def _pieces(boundary: re.Pattern[str], text: str) -> list[str]:
    """Cut at every boundary; the boundary's own visible characters stay with the piece before them."""
    pieces: list[str] = []
    begin = 0
    for match in boundary.finditer(text):
        pieces.append(text[begin : match.end()])
        begin = match.end()
    pieces.append(text[begin:])
    return [stripped for piece in pieces if (stripped := " ".join(piece.split()))]


def _fit(pieces: list[str], limit: int, min_words: int) -> tuple[list[str], list[int]]:
    """At most `limit` pieces, and for each a number that is the same for pieces cut from one piece."""
    if len(pieces) > limit:
        joined = _join(pieces, limit)
        return joined, list(range(len(joined)))
    pieces, origin, words = list(pieces), list(range(len(pieces))), [count_words(piece) for piece in pieces]
    while len(pieces) < limit and pieces:
        longest = max(range(len(pieces)), key=words.__getitem__)
        parts = _halve(pieces[longest], min_words)
        if parts is None:
            break
        pieces[longest : longest + 1], words[longest : longest + 1] = parts
        origin[longest : longest + 1] = [origin[longest]] * 2
    return pieces, origin


def _join(pieces: list[str], limit: int) -> list[str]:
    """Neighbours joined into exactly `limit` runs with about equally many words."""
    words = [count_words(piece) for piece in pieces]
    total, spent, begin = sum(words), 0, 0
    runs: list[str] = []
    for index, count in enumerate(words):
        spent += count
        left, needed = len(pieces) - index - 1, limit - len(runs) - 1
        full = spent >= total * (len(runs) + 1) / limit
        if needed and left >= needed and (full or left == needed):
            runs.append(" ".join(pieces[begin : index + 1]))
            begin = index + 1
    runs.append(" ".join(pieces[begin:]))
    return runs


def _halve(text: str, min_words: int) -> tuple[list[str], list[int]] | None:
    """The text in two, cut at the joint nearest to its middle, else in the middle, and the number of words in each
    half; None if one would be too short.
    """
    starts = word_starts(text)
    count = len(starts)
    if count < 2 * min_words:
        return None
    middle = count / 2
    begin, end = starts[count // 4], starts[min(count * 3 // 4 + 2, count - 1)]  # where a joint is near enough
    places = {bisect_left(starts, match.end()) for match in _JOINT.finditer(text, max(begin - 1, 0), end)}
    near = [p for p in places if min_words <= p <= count - min_words and abs(p - middle) <= count / 4]
    cut = min(near, key=lambda place: (abs(place - middle), place)) if near else count // 2
    return [text[: starts[cut]].rstrip(), text[starts[cut] :]], [cut, count - cut]
