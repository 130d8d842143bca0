"""A mistyped command is answered with the ones that were probably meant."""

from __future__ import annotations

import typer
from typer.core import TyperGroup


class Commands(TyperGroup):
    """typer suggests what is spelled alike; a beginning (`trm build`) is less alike than it is meant."""

    def resolve_command(self, ctx: typer.Context, args: list[str]):  # type: ignore[no-untyped-def,override]
        meant = [name for name in self.commands if args and name.startswith(args[0])]
        if meant and args[0] not in self.commands:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(repr(name) for name in meant)}?")
        return super().resolve_command(ctx, args)
