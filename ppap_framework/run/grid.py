"""All images of a run in one labelled picture.

Above, how they came about, and what the guides were aimed at; below, line by line, the same noise
drawn without guides and with them, each followed by what every guide sees there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs
from PIL import Image, ImageDraw, ImageFont

from ppap_framework.guidance import Guide
from ppap_framework.pixels import to_pil
from ppap_framework.run.plan import Plan, option_words, scale_words
from ppap_framework.run.result import Pictures, Result

__all__ = ["MAX_IMAGES", "Line", "TargetPicture", "draw_grid", "grid_of"]

MAX_IMAGES = 64
"""That a grid shows; the first ones."""

_COLUMNS = 8
_TILE = 128  # pixels: to which smaller pictures are enlarged
_LARGEST = (256, 384)  # width and height to which larger ones are reduced, a legend included,
_LARGEST_AIM = (640, 256)  # and those of targets, which may be several side by side
_MARGIN, _GAP, _TITLES = 16, 8, 136
_LEAST = 640  # for the lines of the header
_HEADER, _TEXT = ImageFont.load_default(16), ImageFont.load_default(13)
_HEADER_LINE, _TEXT_LINE = 22, 17
_CAPTION_LINES, _TITLE_LINES = 2, 4
_PROMPT = 80  # characters of a prompt that are shown
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (28, 28, 32), (96, 98, 104), (208, 210, 214)

_Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"


@attrs.frozen(kw_only=True)
class Line:
    """One line of tiles.

    Attributes:
        title: What they are.
        pictures: The tiles.
        captions: Below each, any number of lines.
        begins: Whether something new begins with it, which a rule shows.
    """

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[Sequence[str]]
    begins: bool = False


@attrs.frozen(kw_only=True)
class TargetPicture:
    """What a guide was aimed at.

    Attributes:
        picture: Of it, one or several side by side.
        caption: Below it.
    """

    picture: Image.Image
    caption: str


def grid_of(result: Result) -> Image.Image:
    """The grid of a run: images, what the guides see in them, and what they were aimed at.

    A guide's words stand below each image; where it has none, its pictures do.
    """
    run = result.plan
    header = _header(run)
    if len(result.images) > MAX_IMAGES:
        header.append(f"the first {MAX_IMAGES} of {len(result.images)} images")
    spoken = [name for name, seen in result.seen.items() if any(seen.words)]
    if spoken:
        verb = "sees" if len(spoken) == 1 else "see"
        header.append(f"below each image: what {' and '.join(spoken)} {verb} in it")
    if len(spoken) < len(result.seen):
        header.append("energy: how far what a guide sees is from its target; lower is nearer")
    titles = {"unguided": "unguided", "naive": "guided, without experts"}
    rows = [row for name, drawn in result.compared.items() for row in _rows(titles[name], drawn)]
    rows += _rows(_guided(run), result.guided)
    aims = [
        TargetPicture(
            picture=to_pil(target.picture[None])[0], caption=f"{guide.name}: {target.label}"
        )
        for guide in run.guides
        if (target := guide.target) is not None and target.picture is not None
    ]
    return draw_grid(header, rows, aims)


def _guided(run: Plan) -> str:
    """What the row of the run's own images is called."""
    expert = [guide.name for guide in run.guides if guide.chosen is not None]
    if not expert:
        return "guided" if run.guides else "unguided"
    whose = "" if len(expert) == len(run.guides) else f" of {' and '.join(expert)}"
    return f"guided, with experts{whose}"


def _short(text: str) -> str:
    """A text on one line that fits beside pictures."""
    line = " ".join(text.split())
    return line if len(line) <= _PROMPT else line[: _PROMPT - 1] + "…"


def _header(run: Plan) -> list[str]:
    settings = run.sampling
    eta = f", eta {settings.eta:g}" if settings.eta else ""
    origin = run.backend.origin
    told = [origin.component, origin.checkpoint, option_words(origin.options)]
    source = " · ".join(filter(None, told))
    lines = [
        f"{source} · {len(run.process)} {settings.sampler_name} steps{eta} · seed {settings.seed}"
    ]
    if settings.prompt is not None:
        prompt = settings.prompt
        each = "each told a prompt of its own"
        lines.append(f"told: {_short(prompt)}" if isinstance(prompt, str) else each)
    for guide in run.guides:
        assert guide.target is not None  # a run's guides are aimed
        low, high = guide.interval
        when = "" if guide.interval == (0.0, 1.0) else f" · from t/T {low:g} to {high:g}"
        pull = " · normalized" if settings.normalize else ""
        where = "without experts" if settings.through == "noisy" else "through the clean image"
        how = f"with {len(guide.chosen.ranges)} experts" if guide.chosen else where
        lines.append(
            f"{guide.name} aims at {guide.target.label} · {_scale(guide)}{pull}{when} · {how}"
        )
    if settings.conflicts == "remove":
        lines.append("what of a guide's pull points against another's is removed")
    return lines


def _scale(guide: Guide) -> str:
    if guide.curve is None:
        return f"scale {scale_words(guide)}"
    return f"scales of experts, from little noise to much: {scale_words(guide)}"


def _rows(title: str, drawn: Pictures) -> list[Line]:
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
        Line(
            title=f"what {name} sees",
            pictures=[Image.fromarray(picture) for picture in seen.pictures[:MAX_IMAGES]],
            captions=[[f"energy {energy:.3g}"] for energy in seen.figures["energy"].tolist()],
        )
        for name, seen in drawn.seen.items()
        if name not in spoken
    ]
    return [Line(title=title, pictures=to_pil(images), captions=captions, begins=True), *shown]


def draw_grid(
    header: Sequence[str], rows: Sequence[Line], aims: Sequence[TargetPicture] = ()
) -> Image.Image:
    """Draw rows of tiles, as many of which as fit stand side by side, below lines of text.

    Args:
        header: Lines.
        rows: Of as many pictures each; they are broken together.
        aims: To show between the two.
    """
    rows = [attrs.evolve(row, pictures=[_tile(p) for p in row.pictures]) for row in rows]
    aims = [attrs.evolve(aim, picture=_aim(aim.picture)) for aim in aims]
    count = len(rows[0].pictures)
    wide = max((p.width for row in rows for p in row.pictures), default=_TILE)
    rows = [
        attrs.evolve(row, captions=[_captions(lines, wide) for lines in row.captions])
        for row in rows
    ]
    columns = max(1, min(count, _COLUMNS))
    inner = max(
        _LEAST,
        _TITLES + columns * (wide + _GAP),
        _TITLES + sum(_aim_width(aim) + 2 * _GAP for aim in aims),
    )
    lines = [part for line in header for part in _wrapped(line, inner, 3, _HEADER)]
    top = _MARGIN + len(lines) * _HEADER_LINE + _GAP
    blocks = -(-count // columns)
    height = top + _aims_height(aims) + blocks * sum(map(_height, rows)) + _MARGIN
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + k * _HEADER_LINE), line, _INK, _HEADER)
    if aims:
        _draw_aims(canvas, pen, aims, top)
        top += _aims_height(aims)
    for start in range(0, count, columns):
        for row in rows:
            _draw_row(canvas, pen, row, range(start, min(start + columns, count)), top, wide)
            top += _height(row)
    return canvas


def _draw_aims(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, aims: Sequence[TargetPicture], top: int
) -> None:
    top = _begin(canvas, pen, top)
    pen.text((_MARGIN, top), "target" if len(aims) == 1 else "targets", _INK, _TEXT)
    left = _MARGIN + _TITLES
    tall = max(aim.picture.height for aim in aims)
    for aim in aims:
        canvas.paste(aim.picture, (left, top))
        for k, line in enumerate(_aim_caption(aim)):
            pen.text((left, top + tall + 2 + k * _TEXT_LINE), line, _FAINT, _TEXT)
        left += _aim_width(aim) + 2 * _GAP


def _draw_row(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, row: Line, shown: range, top: int, wide: int
) -> None:
    if row.begins:
        top = _begin(canvas, pen, top)
    ink = _INK if row.begins else _FAINT
    for k, line in enumerate(_wrapped(row.title, _TITLES - _GAP, _TITLE_LINES)):
        pen.text((_MARGIN, top + k * _TEXT_LINE), line, ink, _TEXT)
    tall = max(picture.height for picture in row.pictures)
    for column, index in enumerate(shown):
        left = _MARGIN + _TITLES + column * (wide + _GAP)
        canvas.paste(row.pictures[index], (left, top))
        for k, line in enumerate(row.captions[index]):
            pen.text((left, top + tall + 2 + k * _TEXT_LINE), line, _FAINT, _TEXT)


def _begin(canvas: Image.Image, pen: ImageDraw.ImageDraw, top: int) -> int:
    """Draw a rule, and say where to go on below it."""
    pen.line((_MARGIN, top, canvas.width - _MARGIN, top), _RULE)
    return top + _GAP


def _height(row: Line) -> int:
    tall = max((picture.height for picture in row.pictures), default=_TILE)
    lines = max(map(len, row.captions), default=0)
    return tall + lines * _TEXT_LINE + _GAP + (_GAP if row.begins else 0)


def _aims_height(aims: Sequence[TargetPicture]) -> int:
    if not aims:
        return 0
    lines = max(len(_aim_caption(aim)) for aim in aims)
    return max(aim.picture.height for aim in aims) + lines * _TEXT_LINE + 2 * _GAP


def _aim_width(aim: TargetPicture) -> int:
    return max(aim.picture.width, _TILE)


def _aim_caption(aim: TargetPicture) -> list[str]:
    return _wrapped(aim.caption, _aim_width(aim), _CAPTION_LINES)


def _tile(picture: Image.Image) -> Image.Image:
    """An image, or what is seen in it: its longest side becomes that of a tile."""
    return _fitted(picture, max(picture.size), _LARGEST)


def _aim(picture: Image.Image) -> Image.Image:
    """What may be several pictures side by side: as far as there is room, the shortest does."""
    return _fitted(picture, min(picture.size), _LARGEST_AIM)


def _fitted(picture: Image.Image, side: int, largest: tuple[int, int]) -> Image.Image:
    """Small pictures with each pixel enlarged by the same whole number, large ones averaged.

    Args:
        picture: Of any size.
        side: Which of its sides is to be enlarged to that of a tile.
        largest: Width and height that it must not exceed.
    """
    room = min(most / extent for most, extent in zip(largest, picture.size, strict=True))
    if room < 1:
        size = max(1, round(picture.width * room)), max(1, round(picture.height * room))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = min(-(-_TILE // side), int(room))
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def _captions(captions: Sequence[str], room: int) -> list[str]:
    return [line for text in captions for line in _wrapped(text, room, _CAPTION_LINES)]


def _wrapped(text: str, room: int, most: int, font: _Font = _TEXT) -> list[str]:
    """Lines that fit, at most so many, the last one cut where that is not enough."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:most]
    if len(lines) > most:
        shown[-1] += "…"
    return [_cut(line, room, font) for line in shown]


def _cut(line: str, room: int, font: _Font) -> str:
    if font.getlength(line) <= room:
        return line
    while line and font.getlength(line + "…") > room:
        line = line[:-1]
    return line + "…"
