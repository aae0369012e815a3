"""All images of a run in one labelled picture.

Above, how they were made and the targets; below, line by line, the same noise drawn without guides
and with them, each followed by what guides see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeAlias

import attrs
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppap_framework.pixels import to_pil, to_uint8
from ppap_framework.run.plan import Kind, Plan, option_words, scale_words
from ppap_framework.run.result import Pictures, Result

MAX_IMAGES = 64
"""Images that a grid shows; the first ones."""

_COLUMNS = 8
_TILE = 128  # pixels, to which smaller pictures are enlarged
_LARGEST = (256, 384)  # largest width and height of a picture, legend included
_LARGEST_TARGET = (640, 256)  # the same for targets, which may be several side by side
_MARGIN, _GAP, _TITLES = 16, 8, 136
_LEAST = 640  # width of the header
_HEADER, _TEXT = (ImageFont.load_default(16), 22), (ImageFont.load_default(13), 17)
_CAPTION_LINES, _TITLE_LINES = 2, 4
_PROMPT = 80  # characters of a prompt that are shown
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (28, 28, 32), (96, 98, 104), (208, 210, 214)

_Type: TypeAlias = tuple["ImageFont.FreeTypeFont | ImageFont.ImageFont", int]
"""A font, and the height of its lines."""
_Aim: TypeAlias = tuple[Image.Image, str]


@attrs.frozen(kw_only=True)
class Line:
    """Tiles with a title on the left and lines of text below each; a rule above, if it begins."""

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[Sequence[str]]
    begins: bool = False


def grid_of(result: Result) -> Image.Image:
    """The grid of a run: images, what the guides see in them, and the targets. A guide's words
    stand below each image, or its energy; its pictures get a line of their own if they differ.
    """
    run, header = result.plan, _header(result.plan)
    if result.stats.count > MAX_IMAGES:
        header.append(f"the first {MAX_IMAGES} of {result.stats.count} images")
    spoken = [name for name, seen in result.seen.items() if any(seen.words)]
    if spoken:
        verb = "sees" if len(spoken) == 1 else "see"
        header.append(f"below each image: what {' and '.join(spoken)} {verb} in it")
    if len(spoken) < len(result.seen):
        header.append("energy: how far what a guide sees is from its target; lower is nearer")
    titles: dict[Kind, str] = {"unguided": "unguided", "naive": "guided, without experts"}
    titles["guided"] = _guided(run)
    there = [kind for kind in titles if kind in result.pictures]
    lines = [line for kind in there for line in _lines(titles[kind], result.pictures[kind])]
    targets = [
        (to_pil(guide.target.picture[None])[0], f"{guide.name}: {guide.target.label}")
        for guide in run.guides
        if guide.target is not None and guide.target.picture is not None
    ]
    if run.begun is None:
        return draw_grid(header, lines, targets)
    x0, unknown = run.begun[0]
    pale, more = (0.8, "; pale where it is drawn anew") if run.sampling.mask else (0.0, "")
    picture = to_pil(x0 + pale * unknown * (1.0 - x0))[0]
    return draw_grid(header, lines, [(picture, f"init image{more}"), *targets], "picture")


def _guided(run: Plan) -> str:
    expert = [guide.name for guide in run.guides if guide.chosen is not None]
    if not expert:
        return "guided" if run.guides else "unguided"
    whose = "" if len(expert) == len(run.guides) else f" of {' and '.join(expert)}"
    return f"guided, with experts{whose}"


def _header(run: Plan) -> list[str]:
    sampling, origin = run.sampling, run.backend.origin
    eta = f", eta {sampling.stochasticity:g}" if sampling.stochasticity else ""
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
        bare = "without experts" if guide.through == "noisy" else "through the clean image"
        first = guide.each_through.count("detached")
        few = "" if len(guide.each_through) == 1 else f", {first} of them"
        read = f"{few} of the predicted image" if first else ""
        words = [
            f"{guide.name} aims at {guide.target.label if guide.target else ''}",
            f"scale {scale_words(guide)}",
            "normalized" if sampling.normalize else "",
            f"from t/T {low:g} to {high:g}" if guide.interval != (0.0, 1.0) else "",
            f"with {len(guide.chosen.ranges)} experts{read}" if guide.chosen else bare,
        ]
        lines.append(" · ".join(filter(None, words)))
    if sampling.conflicts == "remove":
        lines.append("what of a guide's pull points against another's is removed")
    return lines


def _lines(title: str, pictures: Pictures) -> list[Line]:
    pixels, below, more = to_uint8(pictures.images), [], []
    for name, seen in pictures.seen.items():
        energies = [f"energy {e:.3g}" for e in seen.figures["energy"][:MAX_IMAGES].tolist()]
        words: Sequence[str] = seen.words if any(seen.words) else energies
        if any(seen.words) or np.array_equal(seen.pictures, pixels):
            below.append([f"{name}: {w}" for w in words] if len(pictures.seen) > 1 else words)
        else:
            shown = [Image.fromarray(picture) for picture in seen.pictures[:MAX_IMAGES]]
            told = [[word] for word in words]
            more.append(Line(title=f"what {name} sees", pictures=shown, captions=told))
    images = [Image.fromarray(picture) for picture in pixels[:MAX_IMAGES]]
    captions = [[words[i] for words in below] for i in range(len(images))]
    return [Line(title=title, pictures=images, captions=captions, begins=True), *more]


def draw_grid(
    header: Sequence[str], lines: Sequence[Line], targets: Sequence[_Aim] = (), word: str = "target"
) -> Image.Image:
    """Draw lines of tiles below lines of text; as many tiles as fit stand side by side. `lines`
    have equally many tiles and are broken together; captioned `targets`, each a `word`, are above.
    """
    tiles = [[_fitted(p, max(p.size), _LARGEST) for p in line.pictures] for line in lines]
    wide = max((p.width for pictures in tiles for p in pictures), default=_TILE)
    count = len(tiles[0])
    columns = max(1, min(count, _COLUMNS))
    aims = [_fitted(p, min(p.size), _LARGEST_TARGET) for p, _ in targets]
    cells = [max(p.width, _TILE) for p in aims]
    across = columns * (wide + _GAP), sum(cell + 2 * _GAP for cell in cells)
    inner = max(_LEAST, _TITLES + max(across))
    text = [part for line in header for part in _wrapped(line, inner, 3, _HEADER)]
    width, height = inner + 2 * _MARGIN, _MARGIN + len(text) * _HEADER[1] + _GAP
    strips = [Image.new("RGB", (width, height), _PAPER)]
    _write(strips[0], text, (_MARGIN, _MARGIN), _INK, _HEADER)
    if aims:
        title = word + "s" * (len(aims) > 1)
        captions = [[caption] for _, caption in targets]
        aimed = Line(title=title, pictures=aims, captions=captions, begins=True)
        strips.append(_strip(aimed, width, cells, 2 * _GAP))
    for first in range(0, count, columns):
        part = slice(first, first + columns)
        for line, pictures in zip(lines, tiles, strict=True):
            shown = attrs.evolve(line, pictures=pictures[part], captions=line.captions[part])
            strips.append(_strip(shown, width, [wide] * len(shown.pictures), _GAP))
    *tops, height = accumulate((strip.height for strip in strips), initial=0)
    canvas = Image.new("RGB", (width, height + _MARGIN), _PAPER)
    for strip, top in zip(strips, tops, strict=True):
        canvas.paste(strip, (0, top))
    return canvas


def _strip(line: Line, width: int, cells: Sequence[int], gap: int) -> Image.Image:
    """One line across the grid; captions are wrapped to the widths of `cells`."""
    title = _wrapped(line.title, _TITLES - _GAP, _TITLE_LINES)
    captions = [
        [part for text in texts for part in _wrapped(text, cell, _CAPTION_LINES)]
        for texts, cell in zip(line.captions, cells, strict=True)
    ]
    top, left = _GAP if line.begins else 0, _MARGIN + _TITLES
    below = top + max(picture.height for picture in line.pictures)
    bottom = max(below + max(map(len, captions)) * _TEXT[1], top + len(title) * _TEXT[1])
    strip = Image.new("RGB", (width, bottom + _GAP), _PAPER)
    if line.begins:
        ImageDraw.Draw(strip).line((_MARGIN, 0, width - _MARGIN, 0), _RULE)
    _write(strip, title, (_MARGIN, top), _INK if line.begins else _FAINT)
    for picture, caption, cell in zip(line.pictures, captions, cells, strict=True):
        strip.paste(picture, (left, top))
        _write(strip, caption, (left, below + 2), _FAINT)
        left += cell + gap
    return strip


def _write(
    image: Image.Image,
    lines: Sequence[str],
    at: tuple[int, int],
    ink: tuple[int, int, int],
    kind: _Type = _TEXT,
) -> None:
    (left, top), (font, height) = at, kind
    for k, words in enumerate(lines):
        ImageDraw.Draw(image).text((left, top + k * height), words, ink, font)


def _fitted(picture: Image.Image, side: int, largest: tuple[int, int]) -> Image.Image:
    """A picture enlarged until `side` is a tile's (nearest pixel), or reduced to `largest`."""
    room = min(most / extent for most, extent in zip(largest, picture.size, strict=True))
    factor = room if room < 1 else min(-(-_TILE // side), int(room))
    width, height = (max(1, round(extent * factor)) for extent in picture.size)
    how = Image.Resampling.LANCZOS if room < 1 else Image.Resampling.NEAREST
    return picture.resize((width, height), how)


def _wrapped(text: str, room: int, most: int, kind: _Type = _TEXT) -> list[str]:
    """At most `most` lines of at most `room` pixels; what does not fit is cut."""
    lines, (font, _) = list[str](), kind
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:most]
    for k, line in enumerate(shown):
        end = "…" if len(lines) - 1 > k == most - 1 else ""
        while line and font.getlength(line + end) > room:
            line, end = line[:-1], "…"
        shown[k] = line + end
    return shown
