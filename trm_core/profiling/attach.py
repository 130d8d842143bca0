"""Wrap functions and methods from outside: the wrapped code is unaware of it, and is restored afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

_ABSENT = object()


@dataclass(frozen=True)
class Watched:
    """A callable attribute of an object, class or module, and the stage that its calls belong to."""

    owner: Any
    name: str
    stage: str
    within: str = ""  # count only calls made from a stage whose name begins with this
    generator: bool = False  # it returns a generator; the stage then lasts until that is exhausted


@contextmanager
def attached(watched: Sequence[Watched], around: Callable[[Watched, Callable[[], Any]], Any]) -> Iterator[None]:
    """Within the context, every call of a watched attribute goes to `around`, which carries it out."""
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

    # A method belongs to the class: the object itself has no such attribute, before or afterwards.
    before = vars(one.owner).get(one.name, _ABSENT)
    setattr(one.owner, one.name, call)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(one.owner, one.name)
        else:
            setattr(one.owner, one.name, before)
