"""JSON in which an object has one key twice."""

from __future__ import annotations

import pytest

from trm_core.data.unique_keys import parsed
from trm_core.errors import DataError


def test_the_first_key_that_comes_again_is_named() -> None:
    assert parsed('{"a": [{"a": 1}, {"a": 2}]}', "here") == {"a": [{"a": 1}, {"a": 2}]}
    with pytest.raises(DataError, match=r"^here: an object has the key 'b' twice"):
        parsed('{"a": 1, "b": 2, "c": 3, "c": 4, "b": 5}', "here")


def test_one_of_many_keys_is_found_at_once() -> None:
    """Counting each among all the others would take minutes."""
    many = ", ".join(f'"{n}": 0' for n in range(60_000))
    with pytest.raises(DataError, match="'59999' twice"):
        parsed(f'{{{many}, "59999": 1}}', "here")
