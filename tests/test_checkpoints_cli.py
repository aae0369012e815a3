"""`ppap checkpoints`, and what `--checkpoint` makes of names and files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from commands import Run
from torch import Tensor
from web import Web, serving

from ppap_framework.checkpoints import find_checkpoint, open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError
from ppap_framework.registry import registry
from ppap_framework.run import find_backend

PREFIX = "https://openaipublic.blob.core.windows.net/diffusion"
UNCOND = f"{PREFIX}/jul-2021/256x256_diffusion_uncond.pt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with serving() as web:
        monkeypatch.setenv("PPAP_MIRROR", web.address)
        yield web


def refused(result: tuple[int, str, str], *expected: str) -> None:
    commands.refused(result, 4, "\nhint: ", *expected)


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((3,), float(i)) for i, name in enumerate(names)}


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class TestRecords:
    def test_list(self, typed: Run, cache: Path) -> None:
        code, out, err = typed("checkpoints", "list", "--json")
        assert (code, err) == (0, "")
        rows = {row["name"]: row for row in json.loads(out)}
        row = rows["adm-256-uncond"]
        path = cache / "adm" / "adm-256-uncond" / "256x256_diffusion_uncond.pt"
        assert (row["uri"], row["path"], row["here"]) == (UNCOND, str(path), False)
        assert (row["size"], row["licence"], row["image_size"]) == (2211383297, "MIT", 256)
        assert rows["glide-base"]["size"] is None
        assert rows["glide-base"]["approximate_size"] == 4 * rows["glide-base"]["parameters"]
        assert rows["shapes-adm"]["here"]
        assert rows["shapes-adm"]["bytes_here"] == rows["shapes-adm"]["size"]
        _, out, _ = typed("checkpoints", "list")
        lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
        assert "2.2 GB" in lines["adm-256-uncond"]
        assert "about 1.5 GB" in lines["glide-base"]
        assert lines.keys() >= rows.keys()
        _, out, _ = typed("checkpoints", "list", "--here", "--json")
        assert {row["name"] for row in json.loads(out)} == {n for n in rows if rows[n]["here"]}

    def test_info_and_where(self, typed: Run, cache: Path) -> None:
        code, out, _ = typed("checkpoints", "info", "adm-256-uncond")
        assert code == 0
        for text in (UNCOND, "MIT", "552,814,086", "2.2 GB", "config.channel_mult", "linear"):
            assert text in out
        assert "none is published" in typed("checkpoints", "info", "glide-base")[1]
        _, out, _ = typed("checkpoints", "info", "ppap-plugin-adm:adm-64", "--json")
        assert json.loads(out)["architecture"]["process"]["schedule"] == "cosine"
        code, out, _ = typed("checkpoints", "where", "clip-text-enc")
        assert (code, out) == (0, f"{cache / 'clip' / 'clip-text-enc' / 'clip_text_enc.pt'}\n")
        assert Path(typed("checkpoints", "where", "shapes-adm")[1].strip()).is_file()

    @pytest.mark.parametrize("command", ["info", "where", "download", "verify"])
    def test_unknown(self, typed: Run, command: str) -> None:
        result = typed("checkpoints", command, "adm-256-uncnd")
        refused(result, "no checkpoint is called 'adm-256-uncnd'", "did you mean 'adm-256-uncond'")


class TestDownload:
    def test_verified_ever_after(self, typed: Run, web: Web, cache: Path) -> None:
        web.content = pickled(state("a", "b"))
        path = cache / "glide" / "glide-base" / "base.pt"
        assert typed("checkpoints", "download", "glide-base") == (0, f"{path}\n", "")
        assert web.paths == {"/diffusion/dec-2021/base.pt"}
        digest = hashlib.sha256(web.content).hexdigest()
        code, out, _ = typed("checkpoints", "verify", "glide-base", "shapes-adm")
        assert code == 0
        first, second = out.splitlines()
        assert first == f"glide-base: 2 tensors, SHA-256 {digest} as when it was used first"
        assert second.endswith("as published")
        path.write_bytes(pickled(state("a", "c")))
        refused(typed("checkpoints", "verify", "glide-base"), "not what it was", digest)
        code, out, _ = typed("checkpoints", "verify", "glide-base", "--json")
        assert code == 4
        assert not json.loads(out)[0]["sound"]

    def test_another_file_than_published(self, typed: Run, web: Web, cache: Path) -> None:
        web.content = pickled(state("a"))
        expected = f"{len(web.content)} bytes instead of 2211383297"
        refused(typed("checkpoints", "download", "adm-256-uncond"), expected)
        assert not any(path.is_file() for path in cache.rglob("*"))

    @pytest.mark.parametrize("how", ["no network", "--offline", "PPAP_OFFLINE", "run", "run once"])
    def test_says_what_to_fetch_and_where_to_put_it(
        self, typed: Run, cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        path = cache / "adm" / "adm-256-uncond" / "256x256_diffusion_uncond.pt"
        address = UNCOND
        if how in ("no network", "run once"):
            monkeypatch.setenv("PPAP_MIRROR", "http://127.0.0.1:1")
            address = f"http://127.0.0.1:1{UNCOND.removeprefix(PREFIX[: PREFIX.index('/diff')])}"
        elif how == "PPAP_OFFLINE":
            monkeypatch.setenv("PPAP_OFFLINE", "1")
        drawing = ("run", "--backend", "adm", "--checkpoint", "adm-256-uncond")
        arguments = {
            "--offline": ("checkpoints", "download", "adm-256-uncond", "--offline"),
            "run": (*drawing, "--offline"),
            "run once": drawing,
        }
        result = typed(*arguments.get(how, ("checkpoints", "download", "adm-256-uncond")))
        refused(result, f"download {address} and put it at {path}, or name it with --checkpoint")

    def test_verify_of_what_is_not_here_and_of_all(self, typed: Run) -> None:
        refused(typed("checkpoints", "verify", "adm-64"), "'adm-64' is not here", "64x64_diffusion")
        code, out, _ = typed("checkpoints", "verify")
        assert code == 0
        assert {line.partition(":")[0] for line in out.splitlines()} >= {"shapes-adm"}


class TestFilesByHand:
    """A published file has no word of what it is: its name has, or the user."""

    def find(self, wanted: str, component: str = "adm", kind: Any = "backend") -> Any:
        return find_checkpoint(registry(), component, kind, wanted, offline=True)

    def test_is_what_it_is_called(self) -> None:
        torch.save(state("a"), "256x256_diffusion_uncond.pt")
        found = self.find("256x256_diffusion_uncond.pt")
        assert found.architecture == registry().card_named("adm-256-uncond").architecture
        assert found.card is None
        torch.save(state("a"), "base.pt")
        assert list(self.find("base.pt", "glide").state_dict()) == ["base.a"]
        assert self.find("base.pt").architecture == {}
        save_checkpoint(Path("base.pt"), state("a"), {"own": True})
        assert self.find("base.pt", "glide").architecture == {"own": True}
        assert list(self.find("base.pt", "glide").state_dict()) == ["a"]

    def test_is_what_the_user_says(self) -> None:
        torch.save(state("a"), "mine=1.pt")
        found = self.find("adm-64=mine=1.pt")
        assert found.architecture == registry().card_named("adm-64").architecture
        assert self.find("mine=1.pt").architecture == {}
        with pytest.raises(AssetError, match="has no checkpoint 'adm-65'") as caught:
            self.find("adm-65=mine=1.pt")
        assert "adm-64" in caught.value.hint

    def test_says_how_to_say_so(self, typed: Run) -> None:
        torch.save(state("a"), "mine.pt")
        result = typed("run", "--backend", "adm", "--checkpoint", "mine.pt")
        refused(result, "'mine.pt' does not state its architecture", "CARD=PATH")
        result = typed("checkpoints", "convert", "mine.pt", "out.safetensors")
        refused(result, "does not state its architecture", "NAME=PATH")
        assert not Path("out.safetensors").exists()

    def test_networks_of_one_component_are_joined(self) -> None:
        torch.save(state("a"), "base.pt")
        torch.save(state("b", "a"), "upsample.pt")
        found = self.find("base.pt+upsample.pt", "glide")
        assert found.name == "base.pt+upsample.pt"
        assert list(found.architecture) == ["base", "tokenizer", "upsampler"]
        values = {name: int(tensor[0]) for name, tensor in found.state_dict().items()}
        assert values == {"base.a": 0, "upsampler.b": 0, "upsampler.a": 1}
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in found.files]
        assert found.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            ("base.pt+base.pt", "not different networks"),
            ("base.pt+other.pt", "not different networks"),
            ("base.pt+base_inpaint.pt", "differ in 'base'"),
            ("base.pt+missing.pt", "no file 'missing.pt'"),
        ],
    )
    def test_what_does_not_belong_together(self, wanted: str, expected: str) -> None:
        for name in ("base.pt", "base_inpaint.pt", "other.pt"):
            torch.save(state("a"), name)
        with pytest.raises(AssetError, match=expected):
            self.find(wanted, "glide")

    def test_a_file_that_states_what_it_is(self, typed: Run) -> None:
        card = registry().card_named("adm-256-uncond")
        save_checkpoint(Path("same.safetensors"), state("a"), card.architecture)
        save_checkpoint(Path("other.safetensors"), state("a"), {"own": True})
        assert self.find("adm-256-uncond=same.safetensors").architecture == card.architecture
        source = "adm-256-uncond=other.safetensors"
        with pytest.raises(AssetError, match="states what it is, and that is not") as caught:
            self.find(source)
        assert "leave out adm-256-uncond=" in caught.value.hint
        refused(typed("checkpoints", "convert", source, "out.safetensors"), "states what it is")

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (("adm", "adm-64-to-256"), ("of no use alone", "type adm-64+adm-64-to-256")),
            (("glide", "glide-upsample-inpaint"), ("of no use alone", "type glide-base-inpaint+")),
            (("adm", "adm-64+adm-64-to-256+adm-128-to-512"), ("do not belong together",)),
            (("glide", "glide-upsample"), ("is of no use alone", "type glide-base+glide-upsample")),
            (("glide", "glide-base+"), ("does not say what is to be joined", "glide-upsample")),
            (("glide", "glide-base+glide-base"), ("not different networks",)),
            (("adm", "adm-64+adm-128"), ("do not belong together",)),
            (("adm", None, "clip", "clip-text-enc"), ("type clip-image-enc+clip-text-enc",)),
            (("adm", None, "clip", None), ("or one of clip-image-enc+clip-text-enc",)),
        ],
    )
    def test_what_is_of_no_use_is_not_downloaded(
        self, typed: Run, web: Web, flags: tuple[str | None, ...], expected: tuple[str, ...]
    ) -> None:
        names = ("--backend", "--checkpoint", "--guider", "--guider-checkpoint")
        given = [text for pair in zip(names, flags, strict=False) if pair[1] for text in pair]
        target = ("--target", "a cube") if "clip" in flags else ()
        refused(typed("run", *given, *target), *expected)
        assert not web.paths

    def test_files_of_no_use_alone(self) -> None:
        for name in ("base.pt", "upsample.pt", "mine.pt"):
            torch.save(state("a"), name)
        with pytest.raises(AssetError, match="'glide-upsample' is of no use alone"):
            self.find("upsample.pt", "glide")
        joined = self.find("glide-base=mine.pt+upsample.pt", "glide")
        assert [*joined.files.values()] == ["base.", "upsampler."]


class TestConvert:
    def test_of_a_published_file(self, typed: Run) -> None:
        name = "256x256_diffusion_uncond.pt"
        torch.save(state("b", "a"), name)
        result = typed("checkpoints", "convert", name, "out.safetensors")
        assert result == (0, "out.safetensors\n", "")
        written = open_checkpoint("out.safetensors")
        assert written.architecture == registry().card_named("adm-256-uncond").architecture
        values = {name: tensor.tolist() for name, tensor in written.state_dict().items()}
        assert values == {"b": [0, 0, 0], "a": [1, 1, 1]}
        notes = json.loads(written.metadata["ppap.notes"])
        assert notes["sha256"] == hashlib.sha256(Path(name).read_bytes()).hexdigest()

    def test_of_two_networks(self, typed: Run) -> None:
        for name in ("clip_image_enc.pt", "clip_text_enc.pt"):
            torch.save({**state("a"), "odd": torch.tensor([float("nan"), -0.0])}, name)
        source = "clip-image-enc=clip_image_enc.pt+clip_text_enc.pt"
        code, _, err = typed("checkpoints", "convert", source, "clip.safetensors")
        assert (code, err) == (0, "")
        written = open_checkpoint("clip.safetensors")
        parts = {name.partition(".")[0] for name in written.state_dict()}
        assert parts == {"image_encoder", "text_encoder"}
        assert written.architecture["tokenizer"] == "clip"

    def test_draws_the_same(self, typed: Run) -> None:
        _, path, _ = typed("checkpoints", "where", "shapes-adm")
        code, _, _ = typed("checkpoints", "convert", path.strip(), "out.safetensors")
        assert code == 0
        x_t, t = torch.randn(1, 3, 32, 32), torch.tensor([500])
        outputs = [
            find_backend("adm", checkpoint=file).load().stages[0].denoise(x_t, t, None).eps
            for file in (None, "out.safetensors")
        ]
        assert torch.equal(*outputs)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("in.pt", "out.pt"), "does not end in .safetensors"),
            (("in.pt", "there.safetensors"), "--overwrite replaces it"),
        ],
    )
    def test_misuse(self, typed: Run, arguments: tuple[str, str], expected: str) -> None:
        Path("there.safetensors").touch()
        code, _, err = typed("checkpoints", "convert", *arguments)
        assert code == 2
        assert expected in err
        assert Path("there.safetensors").read_bytes() == b""
