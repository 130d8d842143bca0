"""A model's thinking as an animated GIF: one frame per step, then the answer, which is held for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trm_core.errors import UsageError
from trm_core.render.draw_capsules import CapsuleDrawing
from trm_core.render.draw_puzzle import PuzzleDrawing
from trm_core.render.thinking import CapsuleThinking, PuzzleThinking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_COLOURS = 128


class Drawing(Protocol):
    """Draws one frame into an empty figure."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches, the same for every frame."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about what cannot be drawn faithfully."""
        ...

    def draw(self, figure: Figure, number: int, *, final: bool) -> None:
        """Draw the state after step `number` (from 0); `final`: present it as the answer."""
        ...


def drawing_of(thinking: PuzzleThinking | CapsuleThinking) -> Drawing:
    """The drawing that suits a thinking."""
    return PuzzleDrawing(thinking) if isinstance(thinking, PuzzleThinking) else CapsuleDrawing(thinking)


def frames(drawing: Drawing, steps: int) -> Iterator[np.ndarray]:
    """uint8 [height, width, 3]: a frame for each step, then one for the answer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = steps - 1
    for number, final in [*((number, False) for number in range(last + 1)), (last, True)]:
        figure = Figure(figsize=drawing.size, dpi=_DPI, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        drawing.draw(figure, number, final=final)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_animation(
    thinking: PuzzleThinking | CapsuleThinking, path: Path, *, seconds: float = 0.7, hold_seconds: float = 3.0
) -> Sequence[str]:
    """Write a looping GIF to `path`; each step is shown for `seconds`, the answer for `hold_seconds`. Returns sentences
    about what could not be drawn faithfully.

    Raises `UsageError` if `path` does not end in .gif or cannot be written.
    """
    from PIL import Image

    if path.suffix.lower() != ".gif":
        raise UsageError(f"cannot animate into {path}", hint="use a name that ends in .gif")
    drawing = drawing_of(thinking)
    drawn = frames(drawing, len(thinking.steps))
    images = [Image.fromarray(frame).quantize(_COLOURS, dither=Image.Dither.NONE) for frame in drawn]
    durations = [round(1000 * seconds)] * (len(images) - 1) + [round(1000 * hold_seconds)]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, disposal=1)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return drawing.notes
