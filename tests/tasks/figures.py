"""What a drawn figure shows, and whether it can be read."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image


def is_whole(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and min(picture.size) > 200 and len(set(picture.convert("L").tobytes())) > 10


def texts_of(figure: Figure) -> list[Text]:
    """All that is drawn, but for ticks that lie outside and axes that are off."""
    found = [figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        found += [axes.title, *axes.texts]
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                found += [tick.label1 if tick.label1.get_visible() else tick.label2 for tick in ticks]
    return [text for text in found if text is not None and text.get_text()]


def assert_readable(figure: Figure) -> None:
    """No text lies over another one, or outside."""
    figure.dpi = 120  # as it was drawn
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    assert boxes
    for n, (text, box) in enumerate(boxes):
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= 0, f"{text!r} is cut off"
        for other, beside in boxes[:n]:
            assert not box.shrunk(0.98, 0.98).overlaps(beside), f"{text!r} lies over {other!r}"
