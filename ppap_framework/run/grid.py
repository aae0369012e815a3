"""All images of a run in one labelled picture.

Above, how they were made and the targets; below, line by line, the same noise drawn without guides
and with them, each followed by what every guide sees there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs
from PIL import Image, ImageDraw, ImageFont

from ppap_framework.experts import RangeScales
from ppap_framework.guidance import Guide
from ppap_framework.pixels import to_pil
from ppap_framework.run.plan import Plan, option_words, scale_words
from ppap_framework.run.result import Pictures, Result

MAX_IMAGES = 64
"""Images that a grid shows; the first ones."""

_COLUMNS = 8
_TILE = 128  # pixels, to which smaller pictures are enlarged
_LARGEST = (256, 384)  # largest width and height of a picture, legend included
_LARGEST_TARGET = (640, 256)  # the same for targets, which may be several side by side
_MARGIN, _GAP, _TITLES = 16, 8, 136
_LEAST = 640  # width of the header
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
        title: Text on the left.
        pictures: The tiles.
        captions: Lines of text below each.
        begins: Draw a rule above it.
    """

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[Sequence[str]]
    begins: bool = False

    @property
    def height(self) -> int:
        """Pixels, with captions and the space below."""
        tall = max((picture.height for picture in self.pictures), default=_TILE)
        lines = max(map(len, self.captions), default=0)
        return tall + lines * _TEXT_LINE + _GAP + (_GAP if self.begins else 0)


def grid_of(result: Result) -> Image.Image:
    """The grid of a run: images, what the guides see in them, and the targets.

    A guide's words stand below each image; if it has none, its pictures get a line of their own.
    """
    run, header = result.plan, _header(result.plan)
    if len(result.images) > MAX_IMAGES:
        header.append(f"the first {MAX_IMAGES} of {len(result.images)} images")
    spoken = [name for name, seen in result.seen.items() if any(seen.words)]
    if spoken:
        verb = "sees" if len(spoken) == 1 else "see"
        header.append(f"below each image: what {' and '.join(spoken)} {verb} in it")
    if len(spoken) < len(result.seen):
        header.append("energy: how far what a guide sees is from its target; lower is nearer")
    titles = {"unguided": "unguided", "naive": "guided, without experts"}
    lines = [line for kind, p in result.compared.items() for line in _lines(titles[kind], p)]
    lines += _lines(_guided(run), result.guided)
    targets = [
        (to_pil(guide.target.picture[None])[0], f"{guide.name}: {guide.target.label}")
        for guide in run.guides
        if guide.target is not None and guide.target.picture is not None
    ]
    return draw_grid(header, lines, targets)


def _guided(run: Plan) -> str:
    expert = [guide.name for guide in run.guides if guide.chosen is not None]
    if not expert:
        return "guided" if run.guides else "unguided"
    whose = "" if len(expert) == len(run.guides) else f" of {' and '.join(expert)}"
    return f"guided, with experts{whose}"


def _header(run: Plan) -> list[str]:
    sampling, origin = run.sampling, run.backend.origin
    eta = f", eta {sampling.eta:g}" if sampling.eta else ""
    told = [origin.component, origin.checkpoint, option_words(origin.options)]
    steps = f"{len(run.process)} {sampling.sampler_name} steps{eta}"
    lines = [" · ".join([*filter(None, told), steps, f"seed {sampling.seed}"])]
    if isinstance(sampling.prompt, str):
        prompt = " ".join(sampling.prompt.split())
        lines.append(f"told: {prompt if len(prompt) <= _PROMPT else prompt[: _PROMPT - 1] + '…'}")
    elif sampling.prompt is not None:
        lines.append("each told a prompt of its own")
    for guide in run.guides:
        low, high = guide.interval
        when = "" if guide.interval == (0.0, 1.0) else f" · from t/T {low:g} to {high:g}"
        pull = " · normalized" if sampling.normalize else ""
        where = "without experts" if sampling.through == "noisy" else "through the clean image"
        how = f"with {len(guide.chosen.ranges)} experts" if guide.chosen else where
        label = guide.target.label if guide.target else ""
        lines.append(f"{guide.name} aims at {label} · {_scale(guide)}{pull}{when} · {how}")
    if sampling.conflicts == "remove":
        lines.append("what of a guide's pull points against another's is removed")
    return lines


def _scale(guide: Guide) -> str:
    if not isinstance(guide.curve, RangeScales):
        return f"scale {scale_words(guide)}"
    return f"scales of experts, from little noise to much: {scale_words(guide)}"


def _lines(title: str, pictures: Pictures) -> list[Line]:
    images = pictures.images[:MAX_IMAGES]
    spoken = {name: seen.words for name, seen in pictures.seen.items() if any(seen.words)}
    several = len(pictures.seen) > 1
    captions = [
        [f"{name}: {words[i]}" if several else words[i] for name, words in spoken.items()]
        for i in range(len(images))
    ]
    shown = [
        Line(
            title=f"what {name} sees",
            pictures=[Image.fromarray(picture) for picture in seen.pictures[:MAX_IMAGES]],
            captions=[[f"energy {energy:.3g}"] for energy in seen.figures["energy"].tolist()],
        )
        for name, seen in pictures.seen.items()
        if name not in spoken
    ]
    return [Line(title=title, pictures=to_pil(images), captions=captions, begins=True), *shown]


def draw_grid(
    header: Sequence[str],
    lines: Sequence[Line],
    targets: Sequence[tuple[Image.Image, str]] = (),
) -> Image.Image:
    """Draw lines of tiles below lines of text; as many tiles as fit stand side by side.

    `lines` have equally many tiles and are broken together; captioned `targets` stand above them.
    """
    fitted = [[_fitted(p, max(p.size), _LARGEST) for p in line.pictures] for line in lines]
    wide = max((p.width for pictures in fitted for p in pictures), default=_TILE)
    lines = [
        attrs.evolve(
            line,
            pictures=pictures,
            captions=[
                [part for text in texts for part in _wrapped(text, wide, _CAPTION_LINES)]
                for texts in line.captions
            ],
        )
        for line, pictures in zip(lines, fitted, strict=True)
    ]
    aims = [(_fitted(p, min(p.size), _LARGEST_TARGET), caption) for p, caption in targets]
    count = len(lines[0].pictures)
    columns = max(1, min(count, _COLUMNS))
    inner = max(
        _LEAST,
        _TITLES + columns * (wide + _GAP),
        _TITLES + sum(max(p.width, _TILE) + 2 * _GAP for p, _ in aims),
    )
    text = [part for line in header for part in _wrapped(line, inner, 3, _HEADER)]
    captions = [_wrapped(words, max(p.width, _TILE), _CAPTION_LINES) for p, words in aims]
    tall = max((p.height for p, _ in aims), default=0)
    below = tall + max(map(len, captions), default=0) * _TEXT_LINE + 2 * _GAP if aims else 0
    top = _MARGIN + len(text) * _HEADER_LINE + _GAP
    height = top + below + -(-count // columns) * sum(line.height for line in lines) + _MARGIN
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for k, words in enumerate(text):
        pen.text((_MARGIN, _MARGIN + k * _HEADER_LINE), words, _INK, _HEADER)
    if aims:
        start = _rule(canvas, pen, top)
        pen.text((_MARGIN, start), "target" if len(aims) == 1 else "targets", _INK, _TEXT)
        left = _MARGIN + _TITLES
        for (picture, _), caption in zip(aims, captions, strict=True):
            canvas.paste(picture, (left, start))
            _write(pen, caption, left, start + tall + 2)
            left += max(picture.width, _TILE) + 2 * _GAP
        top += below
    for first in range(0, count, columns):
        for line in lines:
            _draw(canvas, pen, line, range(first, min(first + columns, count)), top, wide)
            top += line.height
    return canvas


def _draw(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, line: Line, shown: range, top: int, wide: int
) -> None:
    if line.begins:
        top = _rule(canvas, pen, top)
    title = _wrapped(line.title, _TITLES - _GAP, _TITLE_LINES)
    _write(pen, title, _MARGIN, top, _INK if line.begins else _FAINT)
    tall = max(picture.height for picture in line.pictures)
    for column, index in enumerate(shown):
        left = _MARGIN + _TITLES + column * (wide + _GAP)
        canvas.paste(line.pictures[index], (left, top))
        _write(pen, line.captions[index], left, top + tall + 2)


def _write(
    pen: ImageDraw.ImageDraw,
    lines: Sequence[str],
    left: int,
    top: int,
    ink: tuple[int, int, int] = _FAINT,
) -> None:
    for k, words in enumerate(lines):
        pen.text((left, top + k * _TEXT_LINE), words, ink, _TEXT)


def _rule(canvas: Image.Image, pen: ImageDraw.ImageDraw, top: int) -> int:
    """Draw a rule and return the position below it."""
    pen.line((_MARGIN, top, canvas.width - _MARGIN, top), _RULE)
    return top + _GAP


def _fitted(picture: Image.Image, side: int, largest: tuple[int, int]) -> Image.Image:
    """A picture enlarged until `side` is a tile's (nearest pixel), or reduced to `largest`."""
    room = min(most / extent for most, extent in zip(largest, picture.size, strict=True))
    if room < 1:
        size = max(1, round(picture.width * room)), max(1, round(picture.height * room))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = min(-(-_TILE // side), int(room))
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


def _wrapped(text: str, room: int, most: int, font: _Font = _TEXT) -> list[str]:
    """At most `most` lines of at most `room` pixels; what does not fit is cut."""
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
