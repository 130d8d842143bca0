"""Watching functions and methods from outside: what is watched does not know, and is as before once it ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Watched:
    """An attribute that can be called, of an object, a class or a module, and what its calls belong to."""

    owner: Any
    name: str
    stage: str
    within: str = ""  # only of calls from a stage whose name begins so
    generator: bool = False  # what takes its values, to the last, belongs to it, too


@contextmanager
def attached(watched: Sequence[Watched], around: Callable[[Watched, Callable[[], Any]], Any]) -> Iterator[None]:
    """Inside, every call of a watched attribute is handed to `around`, which makes it."""
    with ExitStack() as stack:
        for one in watched:
            stack.enter_context(_replaced(one, around))
        yield


@contextmanager
def _replaced(one: Watched, around: Callable[[Watched, Callable[[], Any]], Any]) -> Iterator[None]:
    original = getattr(one.owner, one.name)

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        return around(one, functools.partial(original, *arguments, **named))

    # A method is the class's: the object itself has nothing of that name, before and after.
    before = vars(one.owner).get(one.name, _ABSENT)
    setattr(one.owner, one.name, call)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(one.owner, one.name)
        else:
            setattr(one.owner, one.name, before)
