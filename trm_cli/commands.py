"""The group of all commands. Each command is built only when called, because building one takes longer than the rest of
a help page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

Callback = Callable[..., None]


class Built(Mapping[str, Any]):
    """typer commands by name, built from functions on first use; `wrap` is applied to each function first."""

    def __init__(self, callbacks: Mapping[str, Callback], wrap: Callable[[Callback], Callback]) -> None:
        self.callbacks, self.wrap = callbacks, wrap
        self.built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.built:
            one = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            one.command(name)(self.wrap(self.callbacks[name]))
            self.built[name] = typer.main.get_command(one)
        return self.built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.callbacks)

    def __len__(self) -> int:
        return len(self.callbacks)

    def about(self, name: str) -> str:
        """The help text of a command."""
        return inspect.getdoc(self.callbacks[name]) or ""


def group_of(commands: Built) -> type[TyperGroup]:
    """A typer group class that offers these commands."""

    class Commands(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.commands = commands  # type: ignore[assignment]

        def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
            return list(commands)

        def resolve_command(self, ctx: typer.Context, args: list[str]):  # type: ignore[no-untyped-def,override]
            """Also suggest commands that begin with the given name: typer suggests only similar spellings, and `build`
            is not similar enough to `build-capsules`.
            """
            meant = [name for name in commands if args and name.startswith(args[0])]
            if meant and args[0] not in commands:
                ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(repr(name) for name in meant)}?")
            return super().resolve_command(ctx, args)

        def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
            room = formatter.width - 6 - max(map(len, commands))
            with formatter.section("Commands"):
                formatter.write_dl(
                    [
                        (name, TyperCommand(name, help=commands.about(name)).get_short_help_str(room))
                        for name in commands
                    ]
                )

    return Commands
