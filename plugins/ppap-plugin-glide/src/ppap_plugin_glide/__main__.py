"""Converts published files to checkpoints of this plugin.

python -m ppap_plugin_glide glide base.pt upsample.pt glide.safetensors
python -m ppap_plugin_glide clip clip_image_enc.pt clip_text_enc.pt clip.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ppap_framework.author import PpapError
from ppap_plugin_glide.conversion import convert_clip, convert_glide


def main() -> int:
    """Run the conversion from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ppap_plugin_glide",
        description="Make a checkpoint of two published files; its tokenizer goes into it.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, files in (("glide", ("base", "upsample")), ("clip", ("image_enc", "text_enc"))):
        command = kinds.add_parser(kind)
        for file in (*files, "out"):
            command.add_argument(file, type=Path)
    given = parser.parse_args()
    try:
        if given.kind == "glide":
            convert_glide(given.base, given.upsample, given.out)
        else:
            convert_clip(given.image_enc, given.text_enc, given.out)
    except PpapError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
