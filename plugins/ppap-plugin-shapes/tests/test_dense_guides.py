"""The guides of depth and segmentation with the embedded networks: whatever a user aims them at,
alone and together with the classifier, as typed on a command line.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import ppap_framework as ppap
from ppap_framework import learn
from ppap_framework.cli import main
from ppap_framework.components import Target
from ppap_framework.experts.identity import weights_sha256
from ppap_framework.guidance import Guide
from ppap_framework.learn import Recipe
from ppap_framework.run.plan import DEFAULT_MULTIPLIER
from ppap_framework.targets import decode_target

pytest.importorskip("ppap_plugin_midas", reason="the guider depth")
pytest.importorskip("ppap_plugin_segmentation", reason="the guider segmentation")

PACKAGE = Path(str(files("ppap_plugin_shapes")))
SCENE = np.asarray(Image.open(PACKAGE / "references" / "scene-2.png").convert("RGB"))
KINDS = ("depth", "segmentation")
NETWORKS = {"depth": "shapes-dpt", "segmentation": "shapes-segformer"}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def guides() -> dict[str, Guide]:
    """Guides that take every file for a picture."""
    as_picture = {"target_kind": "picture"}
    return {
        kind: ppap.guide(kind, options=as_picture if kind == "segmentation" else {})
        for kind in KINDS
    }


def aimed(guide: Guide, path: Path) -> Target:
    return guide.model.target(decode_target(path))


def energy_and_gradient(guide: Guide, target: Target) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images.requires_grad_(True)
    energy = guide.loss.energy(guide.model(images), target.value)
    (gradient,) = torch.autograd.grad(energy.sum(), images)
    return energy.detach(), gradient


def turned(folder: Path) -> tuple[Path, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    Image.fromarray(np.rot90(SCENE)).save(folder / "x.png", exif=exif)
    return folder / "x.png", SCENE


def opaque(folder: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(SCENE).convert("RGBA").save(folder / "x.png")
    return folder / "x.png", SCENE


def transparent(folder: Path) -> tuple[Path, np.ndarray]:
    alpha = np.full(SCENE.shape[:2], 255, np.uint8)
    alpha[:, :9] = 0
    Image.fromarray(np.dstack([SCENE, alpha])).save(folder / "x.png")
    shown = SCENE.copy()
    shown[:, :9] = 255
    return folder / "x.png", shown


def grey(folder: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(SCENE).convert("L").save(folder / "x.png")
    return folder / "x.png", np.asarray(Image.fromarray(SCENE).convert("L").convert("RGB"))


def grey_with_alpha(folder: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(SCENE).convert("LA").save(folder / "x.png")
    return folder / "x.png", np.asarray(Image.fromarray(SCENE).convert("L").convert("RGB"))


def of_one_bit(folder: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(SCENE[..., 0] > 128).save(folder / "x.png")
    return folder / "x.png", np.stack([np.where(SCENE[..., 0] > 128, 255, 0)] * 3, -1)


def indexed(folder: Path) -> tuple[Path, np.ndarray]:
    few = Image.fromarray(SCENE).quantize(16)
    few.save(folder / "x.png")
    return folder / "x.png", np.asarray(few.convert("RGB"))


def cmyk(folder: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(SCENE).convert("CMYK").save(folder / "x.tif")
    return folder / "x.tif", SCENE


def animated(folder: Path) -> tuple[Path, np.ndarray]:
    frames = [Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")]
    Image.fromarray(SCENE).save(
        folder / "x.webp", save_all=True, append_images=frames, lossless=True
    )
    return folder / "x.webp", SCENE


CASES: tuple[Callable[[Path], tuple[Path, np.ndarray]], ...] = (
    *(turned, opaque, transparent, grey, grey_with_alpha, of_one_bit, indexed, cmyk, animated),
)


class TestReferences:
    @kinds
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
    def test_of_any_mode_are_seen_as_they_look(
        self,
        guides: dict[str, Guide],
        kind: str,
        case: Callable[[Path], tuple[Path, np.ndarray]],
        tmp_path: Path,
    ) -> None:
        path, looks = case(tmp_path)
        Image.fromarray(looks.astype(np.uint8)).save(tmp_path / "plain.png")
        target = aimed(guides[kind], path)
        plain = aimed(guides[kind], tmp_path / "plain.png")
        assert torch.equal(target.value, plain.value)
        assert target.picture is not None
        assert plain.picture is not None
        assert torch.equal(target.picture, plain.picture)
        assert not torch.equal(plain.value, aimed(guides[kind], self.other(tmp_path)).value)

    @staticmethod
    def other(folder: Path) -> Path:
        Image.fromarray(SCENE[::-1]).save(folder / "other.png")
        return folder / "other.png"

    def test_of_16_bits_are_maps_or_pictures(
        self, guides: dict[str, Guide], tmp_path: Path
    ) -> None:
        levels = np.array(Image.fromarray(SCENE).convert("L"))
        Image.fromarray(levels).save(tmp_path / "plain.png")
        Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "x.png")
        seen = [
            aimed(guides["segmentation"], tmp_path / name).value for name in ("x.png", "plain.png")
        ]
        assert torch.equal(*seen)
        target = aimed(guides["depth"], tmp_path / "x.png")
        assert torch.equal(target.value[0], torch.from_numpy(levels).float() * 257)

    @kinds
    @pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (31, 33), (1500, 900)])
    def test_of_any_size_can_be_followed(
        self,
        guides: dict[str, Guide],
        kind: str,
        size: tuple[int, int],
        tmp_path: Path,
    ) -> None:
        Image.fromarray(SCENE).resize(size).save(tmp_path / "x.png")
        target = aimed(guides[kind], tmp_path / "x.png")
        energy, gradient = energy_and_gradient(guides[kind], target)
        assert energy.isfinite().all()
        assert gradient.isfinite().all()
        if min(size) > 1 or kind == "segmentation":  # one pixel is flat, and then any depth will do
            assert gradient.abs().amax((1, 2, 3)).min() > 0
        assert target.picture is not None
        assert max(target.picture.shape) <= 1024


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Types `ppap run --backend adm ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(("run", "--backend", "adm", "--num", "1", *arguments))
        code = caught.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return typed


Run = Callable[..., Outcome]


def png(width: int, height: int) -> bytes:
    """One that says how large it is, and holds a thousand zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


class Wrong(NamedTuple):
    guider: str
    target: str
    code: int
    culprit: str
    hint: str


BOTH = (
    ("truncated.png", 4, "cannot be read", "damaged or incomplete"),
    ("bomb.png", 4, "more than 50000000 pixels", "smaller"),
    ("words.png", 4, "no picture of a known format", "PNG"),
    ("empty.png", 4, "no picture of a known format", "PNG"),
    ("folder.png", 4, "is a folder", "picture"),
    ("absent.png", 4, "is not there", "picture"),
    ("short.npy", 4, "cannot be read", "damaged"),
)
WRONG = (
    *(Wrong(kind, *case) for kind in KINDS for case in BOTH),
    Wrong("depth", "a dog", 2, "cannot aim at the words 'a dog'", "16-bit PNG or NPY"),
    Wrong("depth", "a dog " * 20, 2, f"the words {'a dog ' * 10!r}", "16-bit PNG or NPY"),
    Wrong("depth", "vector.npy", 2, "shape (5,)", "16-bit PNG or NPY"),
    Wrong("segmentation", "spere", 2, "'spere'", "sphere"),
    Wrong("segmentation", "mask.png", 2, "2 indices that are no class: 9, 77", "5 (cone)"),
    Wrong("segmentation", "vector.npy", 2, "shape (5,)", "(H, W)"),
)


class TestBadInput:
    @pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.guider}-{wrong.target}")
    def test_is_one_line_and_a_hint_and_nothing_is_written(
        self, run: Run, wrong: Wrong, tmp_path: Path
    ) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save("whole.png")
        whole = Path("whole.png").read_bytes()
        Path("truncated.png").write_bytes(whole[: len(whole) // 2])
        Path("bomb.png").write_bytes(png(60_000, 60_000))
        Path("words.png").write_text("no picture")
        Path("empty.png").touch()
        Path("folder.png").mkdir()
        Path("short.npy").write_bytes(b"\x93NUMPY\x01\x00")
        np.save("vector.npy", np.ones(5))
        Image.fromarray(np.array([[0, 9], [77, 1]], np.uint8)).save("mask.png")
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run("--guider", wrong.guider, "--target", wrong.target, "--out", "out")
        assert (code, out) == (wrong.code, "")
        first, second = err.splitlines()
        assert first.startswith("ppap: error: ")
        assert wrong.culprit in first
        assert second.startswith("hint: ")
        assert wrong.hint in second
        assert sorted(tmp_path.rglob("*")) == before


def record(folder: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
    return loaded


@kinds
def test_a_folder_guides_as_the_default_does_and_its_weights_are_recorded(
    run: Run, kind: str
) -> None:
    folder = PACKAGE / "weights" / NETWORKS[kind]
    reference = str(PACKAGE / "references" / "scene-2.png")
    common = ("--guider", kind, "--target", reference, "--steps", "2", "--experts", "none")
    assert run(*common, "--out", "default").code == 0
    assert run(*common, "--guider-model", str(folder), "--out", "folder").code == 0
    assert Path("default/000.png").read_bytes() == Path("folder/000.png").read_bytes()
    (default,), (own,) = (record(name)["config"]["guides"] for name in ("default", "folder"))
    assert default["sha256"] is not None
    assert own["sha256"] is None
    assert own["weights_sha256"] == weights_sha256(load_file(folder / "model.safetensors"))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Wall above, floor below, a sphere in the middle, and a corner that is left out."""
    classes = np.zeros((32, 32), np.uint8)
    classes[14:] = 1
    classes[8:24, 8:24] = 2
    classes[:4, :4] = 255
    Image.fromarray(classes).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


class TestTogether:
    def test_each_guide_has_its_own_of_everything(self, run: Run, mask: Path) -> None:
        reference = str(PACKAGE / "references" / "scene-2.png")
        common = (
            *("--guider", "depth=300:0.3-1", "--guider", "segmentation=200:0-0.8"),
            *("--guider", "classifier", "--target", f"depth={reference}"),
            *("--target", f"segmentation={mask}", "--target", "classifier=red cube"),
            *("--experts", "depth=none", "--experts", "segmentation=none"),
            *("--experts", "classifier=auto", "--sampler", "ddim", "--steps", "4"),
        )
        for conflicts in ("keep", "remove"):
            code, out, err = run(*common, "--conflicts", conflicts, "--out", conflicts)
            assert (code, out, err) == (0, f"{conflicts}/grid.png\n", "")
        kept, removed = record("keep"), record("remove")
        depth, segmentation, classifier = kept["config"]["guides"]
        assert (depth["scale"], depth["interval"]) == (300.0, [0.3, 1.0])
        assert (segmentation["scale"], segmentation["interval"]) == (200.0, [0.0, 0.8])
        assert classifier["interval"] == [0.0, 1.0]
        assert classifier["scale"] == DEFAULT_MULTIPLIER
        assert [guide["experts"] is None for guide in kept["config"]["guides"]] == [
            *(True, True, False)
        ]
        labels = [guide["target"] for guide in kept["config"]["guides"]]
        assert labels == ["the depth of scene-2.png", "mask mask.png", "red cube"]

        spent = [record["guidance"]["guides"] for record in (kept, removed)]
        expected = {
            "depth": [0.75, 0.5],
            "segmentation": [0.75, 0.5, 0.25, 0.0],
            "classifier": [0.75, 0.5, 0.25, 0.0],
        }
        for guides in spent:
            assert {guide["name"]: guide["times"] for guide in guides} == expected
            for guide in guides:
                assert len(guide["gradient_norms"]) == len(guide["times"])
                assert all(norm > 0 for norm in guide["gradient_norms"])
                assert guide["skipped"] == 0
        # The first gradients are of the same noise, before anything was removed.
        first = [[guide["gradient_norms"][0] for guide in guides] for guides in spent]
        assert first[0] == pytest.approx(first[1], rel=1e-4)
        assert [guide["conflicts"] for guide in spent[0]] == [0, 0, 0]
        assert sum(guide["conflicts"] for guide in spent[1]) > 0
        assert Path("keep/000.png").read_bytes() != Path("remove/000.png").read_bytes()
        (image,) = kept["images"]
        figures = {name: set(seen) - {"file", "says"} for name, seen in image["seen"].items()}
        assert figures["depth"] == {"energy", "abs_rel", "delta1", "correlation"}
        assert figures["segmentation"] == {"energy", "mean_iou", "pixel_accuracy"}


@pytest.mark.parametrize("kind", ["depth", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_experts_are_made_and_calibrated_and_guide(kind: str, tmp_path: Path) -> None:
    few: dict[str, Any] = {"num": 10, "steps": 2, "num_experts": 2}
    few |= {"keep": False, "recipe": Recipe(iterations=4, batch=4, held_out=0.2)}
    teacher = learn.load_teacher(kind)
    bundle = learn.adapt("adm", teacher, out=tmp_path / "out", calibrate=False, **few)
    learn.calibrate("adm", teacher, bundle.path, num=8, steps=2, levels=3)
    guide = ppap.guide(kind, experts=bundle.path)
    images = ppap.sample("adm", [guide], num=2, steps=4).images
    bare = ppap.sample("adm", [ppap.guide(kind, experts="none", scale=4.0)], num=2, steps=4).images
    assert images.isfinite().all()
    assert not torch.equal(images, bare)
