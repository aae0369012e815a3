"""docs/diffusers.md is followed, with tiny pipelines in the place of its reader's."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from PIL import Image
from tiny_pipelines import deepfloyd, deepfloyd_upsampler, pixel, stable_diffusion


@pytest.mark.slow
def test_the_page_is_followed(tmp_path: Path) -> None:
    text = (pages.DOCS / "diffusers.md").read_text(encoding="utf-8")
    reference = tmp_path / "reference.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(reference)
    first, heading, second = text.partition("## Experts for latents")
    assert heading
    for name, stage in {"STAGE1": deepfloyd(), "STAGE2": deepfloyd_upsampler()}.items():
        stage.save_pretrained(tmp_path / name)
        first = first.replace(name, str(tmp_path / name))
    parts = {"pixels": (first, pixel()), "latents": (first + second, stable_diffusion())}
    for name, (part, pipe) in parts.items():
        folder = tmp_path / name
        saved = folder / "saved"
        pipe.save_pretrained(saved)
        loaded = f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(saved)!r})"
        page = part.replace("FOLDER", str(saved)).replace("reference.png", str(reference))
        page = page.replace("```python\n", f"```python\nimport diffusers\n{loaded}\n")
        (folder / "page.md").write_text(page)
        pages.follow(folder / "page.md", folder)
        assert [*folder.glob("home/runs/*/000.png")]
