"""Cutting documents into segments and phrases."""

# ruff: noqa: RUF001  (punctuation of other scripts is meant)

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_core.data.build.segment import segment

_word = st.text(alphabet="abcdefg'", min_size=1, max_size=8)
_end = st.sampled_from(["", "", "", ",", ".", "!", "...", ";", " -", "\n", '."'])
_document = st.lists(st.tuples(_word, _end), max_size=120).map(lambda parts: " ".join(a + b for a, b in parts))


@given(_document, st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_no_word_is_lost_and_padding_comes_last(document: str, k: int, m: int) -> None:
    segments = segment(document, k, m)
    assert len(segments) == k
    assert all(len(phrases) == m for phrases in segments)
    flat = [phrase for phrases in segments for phrase in phrases if phrase]
    assert " ".join(flat).split() == document.split()
    real = [bool(phrases[0]) for phrases in segments]
    assert real == sorted(real, reverse=True)
    for phrases in segments:
        filled = [bool(phrase) for phrase in phrases]
        assert filled == sorted(filled, reverse=True)


def test_sentences_become_segments_and_clauses_phrases() -> None:
    segments = segment("The cat sat down, and it slept. Then the dog came; it barked.", 2, 2)
    assert segments == [["The cat sat down,", "and it slept."], ["Then the dog came;", "it barked."]]


def test_a_long_document_is_cut_into_balanced_runs_of_sentences() -> None:
    document = " ".join(f"This is sentence number {number}." for number in range(40))
    lengths = [sum(len(phrase.split()) for phrase in phrases) for phrases in segment(document, 8, 4)]
    assert sum(lengths) == 200
    assert max(lengths) - min(lengths) <= 5


def test_a_sentence_without_punctuation_is_cut_at_a_conjunction() -> None:
    assert segment("one two three four five because six seven eight nine", 2, 1) == [
        ["one two three four five"],
        ["because six seven eight nine"],
    ]


def test_short_documents_are_padded() -> None:
    assert segment("hello there", 3, 2) == [["hello there", ""], ["", ""], ["", ""]]
    assert segment("  \n ", 1, 1) == [[""]]


@pytest.mark.parametrize(
    "document",
    [
        "这部电影非常好看，我很喜欢里面的演员，音乐也很动听。剧情的发展稍微有点慢！但是结尾让我很感动。",
        "これは日本語のテキストです。とても面白い映画でしたが、少し長かったです。もう一度見たいと思います！",
        "ภาพยนตร์เรื่องนี้ดีมากฉันชอบนักแสดงและดนตรีก็ไพเราะแต่เนื้อเรื่องช้าไปหน่อย",
    ],
)
def test_scripts_without_spaces_are_cut_too(document: str) -> None:
    segments = segment(document, 3, 2)
    assert all(all(phrases) for phrases in segments), "no padding where there is enough to read"
    assert "".join(phrase for phrases in segments for phrase in phrases).replace(" ", "") == document


def test_sentences_of_chinese_end_without_a_space() -> None:
    assert segment("很好看，我喜欢！！太差了；再也不看。", 2, 2) == [
        ["很好看，", "我喜欢！！"],
        ["太差了；", "再也不看。"],
    ]


def test_a_long_text_without_punctuation_takes_time_in_proportion() -> None:
    def seconds(words: int) -> float:
        begin = time.process_time()
        segment("and so on then " * (words // 4), 8, 4)
        return time.process_time() - begin

    seconds(2_000)
    assert seconds(80_000) < 60 * max(seconds(4_000), 0.005)
