"""All images of a run in one labelled picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from PIL import Image, ImageDraw, ImageFont

from ppap_framework.api._pictures import to_pictures
from ppap_framework.api._plan import scale_words
from ppap_framework.api._result import Drawn, Result

__all__ = ["MAX_IMAGES", "Row", "draw_grid", "grid_of"]

MAX_IMAGES = 64
"""That a grid shows; the first ones."""

_COLUMNS = 8
_TILE, _LARGEST = 128, 256  # pixels: smaller pictures are enlarged, larger ones reduced
_MARGIN, _GAP, _TITLES = 16, 8, 144
_HEADER, _TEXT = ImageFont.load_default(18), ImageFont.load_default(13)
_HEADER_LINE, _TEXT_LINE = 26, 17
_CAPTION_LINES = 2
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 32), (96, 98, 104)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@attrs.frozen(kw_only=True)
class Row:
    """One line of tiles.

    Attributes:
        title: What they are.
        pictures: The tiles.
        captions: Below each, any number of lines.
        beside: To show below the title, or None.
    """

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[Sequence[str]]
    beside: Image.Image | None = None


def grid_of(result: Result) -> Image.Image:
    """The grid of a run: images, what the guides see in them, and what they were aimed at.

    A guide's words stand below each image; where it has none, its pictures do.
    """
    run = result.plan
    settings = run.settings
    eta = f", eta {settings.eta:g}" if settings.eta else ""
    source = " · ".join(filter(None, [run.backend.origin.component, run.backend.origin.checkpoint]))
    header = [f"{source} · {len(run.process)} {settings.sampler} steps{eta} · seed {settings.seed}"]
    for loaded, experts in zip(run.guides, run.experts, strict=True):
        guide = loaded.guide
        low, high = guide.interval
        when = "" if guide.interval == (0.0, 1.0) else f" · from t/T {low:g} to {high:g}"
        pull = " · normalized" if settings.normalize else ""
        through = f"{len(experts.ranges)} experts" if experts else settings.through
        header.append(
            f"{guide.name} aims at {guide.target.label} · scale {scale_words(guide)}{pull}{when}"
            f" · through {through}"
        )
    if settings.conflicts == "remove":
        header.append("what of a guide's pull points against another's is removed")
    if len(result.images) > MAX_IMAGES:
        header.append(f"the first {MAX_IMAGES} of {len(result.images)} images")
    names = ", ".join(loaded.guide.name for loaded in run.guides)
    if speaking := [name for name, seen in result.seen.items() if any(seen.words)]:
        header.append(f"below each image: what {' and '.join(speaking)} sees in it")
    titles = {"unguided": "unguided", "naive": f"{names} without experts"}
    rows = [row for name, drawn in result.compared.items() for row in _rows(titles[name], drawn)]
    rows += _rows(_guided(names, any(run.experts)), result.guided)
    aims = [loaded.guide.target.picture for loaded in run.guides]
    pictures = [to_pictures(aim[None])[0] for aim in aims if aim is not None]
    if pictures:
        guided = next(k for k, row in enumerate(rows) if row.title.startswith("guided"))
        title = f"{rows[guided].title}; the target:"
        rows[guided] = attrs.evolve(rows[guided], title=title, beside=pictures[0])
    return draw_grid(header, rows)


def _guided(names: str, experts: bool) -> str:
    if not names:
        return "unguided"
    return f"guided by {names} with experts" if experts else f"guided by {names}"


def _rows(title: str, drawn: Drawn) -> list[Row]:
    images = drawn.images[:MAX_IMAGES]
    spoken = {name: seen.words for name, seen in drawn.seen.items() if any(seen.words)}
    captions = [
        [
            f"{name}: {words[i]}" if len(drawn.seen) > 1 else words[i]
            for name, words in spoken.items()
        ]
        for i in range(len(images))
    ]
    shown = [
        Row(
            title=f"{name} sees",
            pictures=[Image.fromarray(picture) for picture in seen.pictures[:MAX_IMAGES]],
            captions=[()] * len(images),
        )
        for name, seen in drawn.seen.items()
        if name not in spoken
    ]
    return [Row(title=title, pictures=to_pictures(images), captions=captions), *shown]


def draw_grid(header: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw rows of tiles, as many of which as fit stand side by side, below lines of text.

    Args:
        header: Lines.
        rows: Of as many pictures each; they are broken together.
    """
    rows = [
        attrs.evolve(
            row,
            pictures=[_fitted(picture) for picture in row.pictures],
            beside=None if row.beside is None else _fitted(row.beside, min),
        )
        for row in rows
    ]
    count = len(rows[0].pictures)
    wide = max((p.width for row in rows for p in row.pictures), default=_TILE)
    columns = max(1, min(count, _COLUMNS))
    heights = [_height(row) for row in rows]
    blocks = -(-count // columns)
    title_width = max(
        [_TITLES, *(row.beside.width + _GAP for row in rows if row.beside is not None)]
    )
    width = max(
        2 * _MARGIN + title_width + columns * (wide + _GAP),
        2 * _MARGIN + max((int(_HEADER.getlength(line)) + 1 for line in header), default=0),
    )
    top = _MARGIN + len(header) * _HEADER_LINE + _GAP
    height = top + blocks * (sum(heights) + _GAP) + _MARGIN
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for k, line in enumerate(header):
        pen.text((_MARGIN, _MARGIN + k * _HEADER_LINE), line, _INK, _HEADER)
    for start in range(0, count, columns):
        for row, row_height in zip(rows, heights, strict=True):
            _draw_row(
                canvas, pen, row, range(start, min(start + columns, count)), top, wide, title_width
            )
            top += row_height
        top += _GAP
    return canvas


def _draw_row(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    shown: range,
    top: int,
    wide: int,
    title_width: int,
) -> None:
    below = top
    for line in _wrapped(row.title, title_width - _GAP, 3):
        pen.text((_MARGIN, below), line, _INK, _TEXT)
        below += _TEXT_LINE
    if row.beside is not None:
        canvas.paste(row.beside, (_MARGIN, below + _GAP // 2))
    tall = max(picture.height for picture in row.pictures)
    for column, index in enumerate(shown):
        left = _MARGIN + title_width + column * (wide + _GAP)
        canvas.paste(row.pictures[index], (left, top))
        lines = [
            line
            for caption in row.captions[index]
            for line in _wrapped(caption, wide, _CAPTION_LINES)
        ]
        for k, line in enumerate(lines):
            pen.text((left, top + tall + 2 + k * _TEXT_LINE), line, _FAINT, _TEXT)


def _height(row: Row) -> int:
    tall = max((picture.height for picture in row.pictures), default=_TILE)
    lines = max((len(c) for c in row.captions), default=0) * _CAPTION_LINES
    beside = row.beside.height + 3 * _TEXT_LINE if row.beside is not None else 0
    return max(tall + lines * _TEXT_LINE, beside) + _GAP


def _fitted(picture: Image.Image, legible: Callable[[Sequence[int]], int] = max) -> Image.Image:
    """Small pictures with each pixel enlarged by the same whole number, large ones averaged.

    Args:
        legible: Which side is enlarged to that of a tile: the longest, or as far as there is room
            the shortest, for what may be several pictures side by side.
    """
    longest = max(picture.size)
    if longest > _LARGEST:
        scale = _LARGEST / longest
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = min(-(-_TILE // legible(picture.size)), max(1, _LARGEST // longest))
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def _wrapped(text: str, room: int, most: int) -> list[str]:
    """Lines that fit, at most so many, the last one cut where that is not enough."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _TEXT.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:most]
    if len(lines) > most:
        shown[-1] += "…"
    return [_cut(line, room) for line in shown]


def _cut(line: str, room: int) -> str:
    if _TEXT.getlength(line) <= room:
        return line
    while line and _TEXT.getlength(line + "…") > room:
        line = line[:-1]
    return line + "…"
