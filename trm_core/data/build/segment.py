"""A document as k segments (about sentences) of m phrases each, cut where the language has joints.

Sentences and phrases are found by punctuation and conjunctions. Too many pieces are joined with their neighbours so
that all get about equally many words; too few are cut again, the longest first, at a joint if there is one and in the
middle otherwise, as long as both halves keep a few words. What still is missing is padding (an empty string).
"""

from __future__ import annotations

import re

# After . ! ? … and closing quotes or brackets, before white space; or at a line break or a wide gap.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019)\]]*\s+|\n+|\s{3,}")
_PHRASE_END = re.compile(r"(?<=[,;:\u2013\u2014])\s+|\s+(?=\()|(?<=\))\s+|\s-{1,2}\s|\s*\.{2,}\s*")
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

    Of the segments that one sentence was cut into, the first is the parent of the others. It is itself a child of
    segment 0, the root (-1). A segment of several whole sentences stands for its first one. Padding has no parent.
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
    """At most `limit` pieces, and for each a number that is equal for those cut from the same piece."""
    if len(pieces) > limit:
        joined = _join(pieces, limit)
        return joined, list(range(len(joined)))
    pieces, origin = list(pieces), list(range(len(pieces)))
    while len(pieces) < limit and pieces:
        longest = max(range(len(pieces)), key=lambda index: len(pieces[index].split()))
        halves = _halve(pieces[longest], min_words)
        if halves is None:
            break
        pieces[longest : longest + 1] = halves
        origin[longest : longest + 1] = [origin[longest]] * 2
    return pieces, origin


def _join(pieces: list[str], limit: int) -> list[str]:
    """Neighbours joined into exactly `limit` runs with about equally many words."""
    words = [len(piece.split()) for piece in pieces]
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


def _halve(text: str, min_words: int) -> list[str] | None:
    """The text in two, at the joint nearest to its middle, else in the middle; None if a half would be too short."""
    words = text.split()
    if len(words) < 2 * min_words:
        return None
    places = {len(text[: match.start()].split()) for match in _JOINT.finditer(text)}
    allowed = [place for place in places if min_words <= place <= len(words) - min_words]
    middle = len(words) / 2
    near = [place for place in allowed if abs(place - middle) <= len(words) / 4]
    cut = min(near, key=lambda place: (abs(place - middle), place)) if near else len(words) // 2
    return [" ".join(words[:cut]), " ".join(words[cut:])]
