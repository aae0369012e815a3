"""The reference scenes of the embedded world, the pictures that guides of every pixel aim at by
default.

    python render_references.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ppap_plugin_shapes.world import render

SEED, COUNT = 920, 8
FOLDER = Path(__file__).parent.parent / "src" / "ppap_plugin_shapes" / "references"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for index, pixels in enumerate(render(SEED, range(COUNT)).images):
        Image.fromarray(pixels).save(FOLDER / f"scene-{index}.png", optimize=True)


if __name__ == "__main__":
    main()
