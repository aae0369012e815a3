"""Networks that others trained: what they say of photographs, and the whole path with a guide of
1000 classes. EfficientNet-Lite0 guides, MobileNetV2 judges.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from distributions import REPOSITORY
from PIL import Image
from real_networks import GUIDE, JUDGE, PHOTOGRAPHS, file, guide, judge, photograph
from transfer_toy import anatomy, attached

import ppap_framework as ppap
from ppap_framework.guidance import Guide
from ppap_framework.noise import linear_schedule


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "make_real_weights.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def looks(folder: Path) -> dict[str, Guide]:
    picture = Image.fromarray(skimage.data.chelsea())
    try:
        given = {"guide": guide(folder), "judge": judge()}
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not here: {error}")
    return {
        name: ppap.guide("classifier", target=picture, experts="none", **each)
        for name, each in given.items()
    }


@pytest.mark.parametrize("where", [GUIDE, JUDGE])
def test_files_are_those_that_their_names_say(
    where: tuple[str, str], looks: dict[str, Guide]
) -> None:
    path = file(*where)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.startswith(path.stem.rpartition("-")[2])


@pytest.mark.parametrize("who", ["guide", "judge"])
def test_names_photographs_and_aims_at_what_they_show(who: str, looks: dict[str, Guide]) -> None:
    model = looks[who].model
    assert looks[who].target.label == "Egyptian cat, as in picture"
    for name, shows in PHOTOGRAPHS.items():
        (said,) = model.describe(model(photograph(name, 224)))
        assert said.rpartition(" ")[0] == shows


def test_noise_is_what_it_cannot_read(looks: dict[str, Guide]) -> None:
    """Which is why experts are needed: the class is lost long before the picture is."""
    schedule, aimed = linear_schedule(), looks["guide"]
    images = photograph("chelsea").expand(4, -1, -1, -1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    said = []
    for t in (0, 50, 300):
        x_t = schedule.add_noise(images, torch.full((4,), t), noise)
        with torch.no_grad():
            said.append(float(aimed.model(x_t).softmax(1)[:, int(aimed.target.value)].mean()))
    assert said[0] > 0.8
    assert said[2] < 0.05
    assert said == sorted(said, reverse=True)


def test_experts_are_attached_and_leave_it_as_it_was(looks: dict[str, Guide]) -> None:
    model = looks["guide"].model
    before = anatomy(model.network)
    experts = attached(model, 2, lora={"rank": 16}, bias={})
    images = photograph("chelsea")
    with torch.no_grad():
        said = model(images)
        experts.activate(1)
        torch.testing.assert_close(model(images), said)  # at first every expert is no change
    with experts.training(0):
        model(images).logsumexp(1).sum().backward()
    for parameter in experts.parameters(0):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    experts.detach()
    assert anatomy(model.network) == before


@pytest.mark.slow
def test_from_synthetic_images_to_guided_ones(
    made: dict[str, Any], looks: dict[str, Guide], tmp_path: Path
) -> None:
    size = made["Size"](
        synthetic=16, iterations=6, batch=4, num_experts=2, noises=2, images=2, steps=5
    )
    found = made["measure"](tmp_path, size)
    assert [row["says"] for row in found["clean"]] == [row["shows"] for row in found["clean"]]
    assert [row["led_by"] for row in found["guided"]] == ["unguided", "untouched", "experts"] * 2
    for part in ("unguided", "untouched", "experts"):
        rows = [row for row in found["guided"] if row["led_by"] == part]
        assert all(0.0 <= row[who] <= 1.0 for row in rows for who in ("guide", "judge"))
    unguided, untouched, experts = (row["guide"] for row in found["guided"][:3])
    assert len({unguided, untouched, experts}) == 3  # each of them does something else


def test_the_page_is_of_the_record(made: dict[str, Any]) -> None:
    page, found = made["PAGE"].read_text(), json.loads(made["RECORD"].read_text())
    for name in made["TABLES"]:
        between = re.search(rf"<!-- {name} -->\n(.*)<!-- end of {name} -->", page, re.DOTALL)
        assert between is not None
        assert between[1].splitlines() == made["_table"](found[name])
    assert {row["shows"] for row in found["clean"]} == set(PHOTOGRAPHS.values())
