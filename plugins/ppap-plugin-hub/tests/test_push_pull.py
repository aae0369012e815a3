"""Experts to and from a Hub and other storage: what arrives, and what is refused in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hub_server
import pytest
import yaml
from commands import Run, refused
from hub_server import Hub, Repository
from PIL import Image

from ppap_framework.experts import read_bundle_info, verify_bundle
from ppap_framework.files import file_sha256

REPOSITORY, FILE = "ada/colours", "mine.experts.safetensors"


def stored(bundle: Path) -> dict[str, bytes]:
    return {FILE: bundle.read_bytes()}


def shared(hub: Hub, content: bytes, name: str = FILE, **of: bool) -> Repository:
    """A repository with a bundle, as somebody else left it."""
    made = hub.repositories[f"models/{REPOSITORY}"] = Repository(commits=[{name: content}], **of)
    return made


def kept(cache: Path) -> Path:
    return cache / "experts" / FILE


def test_what_is_pushed_to_the_hub_is_pulled(
    typed: Run, hub: Hub, bundle: Path, cache: Path
) -> None:
    code, out, err = typed("experts", "push", bundle, REPOSITORY)
    assert (code, out, err) == (0, f"hf://{REPOSITORY}/{FILE}\n", "")
    assert hub.files(REPOSITORY)[FILE] == bundle.read_bytes()
    code, out, err = typed("experts", "pull", REPOSITORY)
    assert (code, out, err) == (0, f"{kept(cache)}\n", "")
    assert kept(cache).read_bytes() == bundle.read_bytes()
    assert [path.name for path in kept(cache).parent.iterdir()] == [FILE]
    rows = json.loads(typed("experts", "list", "--json").out)
    assert [row["name"] for row in rows if row["problem"] is None] == ["mine"]


def test_requests_are_those_of_the_hub(typed: Run, hub: Hub, bundle: Path) -> None:
    typed("experts", "push", bundle, REPOSITORY)
    wanted = ["GET /api/whoami-v2", "POST /api/repos/create", f"GET /api/models/{REPOSITORY}"]
    wanted += [f"POST /api/models/{REPOSITORY}/preupload/main"]
    wanted += [f"POST /{REPOSITORY}.git/info/lfs/objects/batch"]
    wanted += [f"PUT /storage/{file_sha256(bundle)}", "POST /verify"]
    wanted += [f"POST /api/models/{REPOSITORY}/commit/main"]
    assert [asked for asked in hub.asked if asked in wanted] == wanted
    assert len(hub.repositories[f"models/{REPOSITORY}"].commits) == 2


def test_large_files_may_be_in_a_xet_store(
    typed: Run, hub: Hub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's own client of such stores writes and reads; this server is only asked where."""
    hf_xet = pytest.importorskip("hf_xet")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet = str(tmp_path / "xet")
    Path(hub.xet).mkdir()
    [found] = hf_xet.hash_files([str(bundle)])
    hub.xet_hashes[file_sha256(bundle)] = found.hash
    hub.objects[file_sha256(bundle)] = bundle.read_bytes()  # what the Hub reads from the store
    assert typed("experts", "push", bundle, REPOSITORY).code == 0
    assert typed("experts", "pull", REPOSITORY, "--out", tmp_path / FILE).code == 0
    assert (tmp_path / FILE).read_bytes() == bundle.read_bytes()
    assert not any("storage" in asked or "lfs" in asked for asked in hub.asked)
    assert sum("xet" in asked for asked in hub.asked) == 2


@pytest.mark.parametrize(
    "folder", ["memory://shared/a", "file://{}/shared", "{}/shared", "./shared"]
)
def test_what_is_pushed_to_storage_is_pulled(
    typed: Run, bundle: Path, tmp_path: Path, folder: str
) -> None:
    folder = folder.format(tmp_path)
    address = f"{folder}/{FILE}"
    assert typed("experts", "push", bundle, folder) == (0, f"{address}\n", "")
    for source in (folder, address):
        out = tmp_path / f"{len(source)}{FILE}"
        assert typed("experts", "pull", source, "--out", out) == (0, f"{out}\n", "")
        assert out.read_bytes() == bundle.read_bytes()


def test_what_is_there_already_is_left_alone(
    typed: Run, hub: Hub, bundle: Path, cache: Path
) -> None:
    typed("experts", "push", bundle, REPOSITORY)
    before = len(hub.asked)
    assert typed("experts", "push", bundle, REPOSITORY).err.endswith("has these experts already\n")
    assert len(hub.repositories[f"models/{REPOSITORY}"].commits) == 2
    assert not any(asked.startswith("PUT") for asked in hub.asked[before:])
    typed("experts", "pull", REPOSITORY)
    before = len(hub.asked)
    assert typed("experts", "pull", REPOSITORY).code == 0
    assert not any("storage" in asked for asked in hub.asked[before:])


@pytest.mark.parametrize("place", [REPOSITORY, "memory://replaced"])
def test_other_experts_of_the_name_are_replaced_on_request_only(
    typed: Run, hub: Hub, bundle: Path, other: Path, tmp_path: Path, place: str
) -> None:
    typed("experts", "push", bundle, place)
    refused(typed("experts", "push", other, place), 2, f"another '{FILE}'", "--overwrite")
    out = tmp_path / FILE
    typed("experts", "pull", place, "--out", out)
    assert out.read_bytes() == bundle.read_bytes()
    assert typed("experts", "push", other, place, "--overwrite").code == 0
    refused(typed("experts", "pull", place, "--out", out), 2, "is there already", "--overwrite")
    assert out.read_bytes() == bundle.read_bytes()
    assert typed("experts", "pull", place, "--out", out, "--overwrite").code == 0
    assert out.read_bytes() == other.read_bytes()


def test_an_earlier_commit_is_pulled_by_its_name(
    typed: Run, hub: Hub, bundle: Path, other: Path, tmp_path: Path
) -> None:
    typed("experts", "push", bundle, REPOSITORY)
    first = hub.repositories[f"models/{REPOSITORY}"].sha()
    typed("experts", "push", other, REPOSITORY, "--overwrite")
    for source in (f"{REPOSITORY}@{first}", f"hf://{REPOSITORY}@{first}/{FILE}"):
        out = tmp_path / source.replace("/", "-") / FILE
        assert typed("experts", "pull", source, "--out", out).code == 0
        assert out.read_bytes() == bundle.read_bytes()


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_bit_that_changes_on_the_way_is_noticed(
    typed: Run, hub: Hub, bundle: Path, cache: Path
) -> None:
    shared(hub, bundle.read_bytes())
    hub.changed = flipped
    refused(typed("experts", "pull", REPOSITORY), 4, "did not come as it is there", "SHA-256")
    assert not kept(cache).exists()


def test_a_file_that_ends_early_is_noticed(typed: Run, hub: Hub, bundle: Path, cache: Path) -> None:
    shared(hub, bundle.read_bytes())
    hub.changed = lambda content: content[:-10]
    refused(typed("experts", "pull", REPOSITORY), 4, REPOSITORY)
    assert not kept(cache).exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"<html>", b"PK\x03\x04"])
def test_what_is_no_bundle_is_refused(typed: Run, hub: Hub, cache: Path, content: bytes) -> None:
    """A pickle under a bundle's name, for one."""
    shared(hub, content)
    refused(typed("experts", "pull", REPOSITORY), 4)
    assert not kept(cache).exists()


def test_a_damaged_bundle_is_refused_by_its_own_hash(
    typed: Run, hub: Hub, bundle: Path, cache: Path
) -> None:
    """It is on the Hub as it was pushed, so the listing agrees."""
    shared(hub, flipped(bundle.read_bytes()))
    refused(typed("experts", "pull", REPOSITORY), 4, "was damaged or changed")
    assert not kept(cache).exists()


def test_a_damaged_bundle_is_not_pushed(typed: Run, hub: Hub, bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / FILE
    damaged.write_bytes(flipped(bundle.read_bytes()))
    refused(typed("experts", "push", damaged, REPOSITORY), 4, "was damaged or changed")
    assert not hub.asked


def test_a_listing_of_storage_is_compared(
    typed: Run, bundle: Path, other: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    typed("experts", "push", bundle, folder)
    (folder / FILE).write_bytes(other.read_bytes())  # whole, but not what the listing says
    refused(typed("experts", "pull", folder, "--out", tmp_path / FILE), 4, "the listing says")
    (folder / f"{FILE}.sha256").write_text("none\n")
    refused(typed("experts", "pull", folder, "--out", tmp_path / FILE), 4, "holds no SHA-256")
    assert not (tmp_path / FILE).exists()


Change = Callable[[Hub, pytest.MonkeyPatch], None]


def no_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")


def wrong_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_wrong")


def reading_token(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", hub_server.READ)


def full(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    said = {"X-Error-Message": "Storage limit reached"}
    hub.refused["lfs/objects/batch"] = (403, said, {"error": said["X-Error-Message"]})


def storage_refuses(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.refused["PUT /storage"] = (403, {}, b"<Error>expired</Error>")


def teapot(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.refused["commit/main"] = (418, {"X-Error-Message": "short and stout"}, {})


def overtaken(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        found = hub.repositories[f"models/{REPOSITORY}"]
        found.commits.append({"other": b""})
        found.messages.append("meanwhile")

    hub.meanwhile = write


def nonsense(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.refused["whoami"] = (200, {}, b"<html>a proxy's page</html>")


@pytest.mark.parametrize(
    "change, said",
    [
        (no_token, ["no token", "HF_TOKEN"]),
        (wrong_token, ["does not accept the token", "HF_TOKEN"]),
        (reading_token, ["has no right", "'ada'"]),
        (full, ["Storage limit reached"]),
        (storage_refuses, ["no right", "expired"]),
        (teapot, ["418", "short and stout"]),
        (overtaken, ["meanwhile", "type it again"]),
        (nonsense, ["cannot write to"]),
    ],
)
def test_a_refused_upload_says_why(
    typed: Run,
    hub: Hub,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    said: list[str],
) -> None:
    change(hub, monkeypatch)
    refused(typed("experts", "push", bundle, REPOSITORY), 1, f"hf://{REPOSITORY}", *said)
    made = hub.repositories.get(f"models/{REPOSITORY}", Repository())
    assert not any(FILE in commit for commit in made.commits)


def test_somebody_elses_name_is_refused(typed: Run, hub: Hub, bundle: Path) -> None:
    refused(typed("experts", "push", bundle, "grace/colours"), 1, "no right", "'grace'")
    assert not hub.repositories


def gone(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.repositories.clear()


def private(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    no_token(hub, patch)
    hub.repositories[f"models/{REPOSITORY}"].private = True


def gated(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    no_token(hub, patch)
    hub.repositories[f"models/{REPOSITORY}"].gated = True


def two(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.files(REPOSITORY)["b.experts.safetensors"] = b""


def none(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.files(REPOSITORY).clear()


def broken(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.refused["tree"] = (400, {"X-Error-Message": "no trees today"}, {})


def off(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PPAP_OFFLINE", "1")


def hub_off(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    "change, said",
    [
        (gone, ["no such repository, or it is private", "HF_TOKEN"]),
        (private, ["no such repository, or it is private", "HF_TOKEN"]),
        (gated, ["gives access one by one", "ask for access"]),
        (two, ["2 bundles", "b.experts.safetensors"]),
        (none, ["no bundle of experts"]),
        (broken, ["no trees today"]),
        (off, ["downloads are off", "unset PPAP_OFFLINE"]),
        (hub_off, ["downloads are off", "unset HF_HUB_OFFLINE"]),
    ],
)
def test_what_cannot_be_pulled_says_why(
    typed: Run,
    hub: Hub,
    bundle: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    said: list[str],
) -> None:
    shared(hub, bundle.read_bytes())
    change(hub, monkeypatch)
    refused(typed("experts", "pull", REPOSITORY), 4, REPOSITORY, *said)
    assert not kept(cache).exists()


def test_nothing_is_asked_if_downloads_are_off(typed: Run, hub: Hub, bundle: Path) -> None:
    shared(hub, bundle.read_bytes())
    refused(typed("experts", "pull", REPOSITORY, "--offline"), 4, "downloads are off")
    assert not hub.asked


@pytest.mark.parametrize(
    "source, code, said",
    [
        (f"{REPOSITORY}@nowhere", 4, ["no revision 'nowhere'"]),
        (
            f"hf://{REPOSITORY}/yours.experts.safetensors",
            4,
            ["no 'yours.experts", f"did you mean '{FILE}'"],
        ),
        ("colours", 2, ["no repository of the Hub and no URL", "OWNER/NAME"]),
        ("hf://colours", 2, ["names no repository"]),
        ("ada/co..lours", 2, ["no name of a repository"]),
        ("nothing://a/b", 2, ["nothing here reads"]),
        ("memory://empty/place", 4, ["no bundle of experts"]),
    ],
)
def test_an_address_that_leads_nowhere_says_so(
    typed: Run, hub: Hub, bundle: Path, source: str, code: int, said: list[str]
) -> None:
    shared(hub, bundle.read_bytes())
    refused(typed("experts", "pull", source), code, *said)


def test_a_hub_that_is_not_there_is_said(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(typed("experts", "pull", REPOSITORY), 4, "cannot be reached")


def test_a_file_system_that_is_not_installed_is_named(
    typed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(typed("experts", "pull", "s3://bucket/folder"), 3, "pip install s3fs")


def test_a_folder_that_cannot_be_written_to(typed: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(typed("experts", "push", bundle, tmp_path / "file" / "x"), 1, "cannot write to")


def test_private_is_for_repositories(typed: Run, hub: Hub, bundle: Path) -> None:
    assert typed("experts", "push", bundle, REPOSITORY, "--private").code == 0
    assert hub.repositories[f"models/{REPOSITORY}"].private
    refused(typed("experts", "push", bundle, "memory://x", "--private"), 2, "--private")


def test_json(typed: Run, hub: Hub, bundle: Path, cache: Path) -> None:
    made = json.loads(typed("experts", "push", bundle, REPOSITORY, "--json").out)
    assert made == {"name": "mine", "address": f"hf://{REPOSITORY}/{FILE}", "written": True}
    found = json.loads(typed("experts", "pull", REPOSITORY, "--json").out)
    assert found == {"name": "mine", "path": str(kept(cache)), "sha256": file_sha256(bundle)}


# The card


def test_the_card_is_of_the_bundle(typed: Run, hub: Hub, bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    given = ("--picture", tmp_path / "grid.png", "--licence", "apache-2.0")
    assert typed("experts", "push", bundle, REPOSITORY, *given).code == 0
    text = hub.files(REPOSITORY)["README.md"].decode()
    assert hub.files(REPOSITORY)["mine.png"] == (tmp_path / "grid.png").read_bytes()
    _, front, body = text.split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "apache-2.0" and {"ppap", "colour", "toy"} <= {*said["tags"]}
    info = read_bundle_info(bundle)
    wanted = ["3 experts", "](mine.png)", file_sha256(bundle), str(info.guide.sha256)]
    wanted += [f"ppap experts pull hf://{REPOSITORY}/{FILE}", "`colour` (`colour-3`)"]
    for words in wanted:
        assert words in body
    rows = re.findall(r"^\| \d+ \| (\d+) to (\d+) \|", body, re.MULTILINE)
    ends = list(zip(info.timesteps, info.timesteps[1:], strict=False))
    assert [(int(a), int(b) + 1) for a, b in rows] == ends


def test_the_command_of_the_card_draws(typed: Run, hub: Hub, bundle: Path, tmp_path: Path) -> None:
    typed("experts", "push", bundle, REPOSITORY)
    text = hub.files(REPOSITORY)["README.md"].decode()
    pull, run = re.findall(r"^ppap (experts pull .*|run .*)$", text, re.MULTILINE)
    assert typed(*pull.split()).code == 0
    more = ("--target", "green", "--num", 2, "--steps", 2, "--out", tmp_path / "out", "--json")
    outcome = typed(*run.split(), *more)
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert file_sha256(bundle) in json.dumps(record)


def test_a_later_push_keeps_what_others_wrote(
    typed: Run, hub: Hub, bundle: Path, other: Path, tmp_path: Path
) -> None:
    found = shared(hub, b"", "unrelated.bin")
    written = "---\nlicense: mit\n---\nMy experts.\r\n"
    found.commits[-1]["README.md"] = written.encode()
    typed("experts", "push", bundle, REPOSITORY)
    first = hub.files(REPOSITORY)["README.md"].decode()
    assert first.startswith("---\nlicense: mit\n---\n") and "My experts." in first
    hub.files(REPOSITORY)["README.md"] = first.replace(
        "<!-- ppap", "Above.\n\n<!-- ppap", 1
    ).encode()
    second = tmp_path / "second.experts.safetensors"
    second.write_bytes(other.read_bytes())
    typed("experts", "push", second, REPOSITORY)
    typed("experts", "push", other, REPOSITORY, "--overwrite")
    text = hub.files(REPOSITORY)["README.md"].decode()
    assert text.startswith("---\nlicense: mit\n---\n") and "My experts." in text
    assert text.count("Above.") == text.count("# mine") == text.count("# second") == 1
    assert file_sha256(other) in text and file_sha256(bundle) not in text


@pytest.mark.parametrize("content, said", [(None, "there is no picture"), (b"x", "is no picture")])
def test_a_picture_that_is_none(
    typed: Run, hub: Hub, bundle: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "grid.png"
    if content is not None:
        path.write_bytes(content)
    refused(typed("experts", "push", bundle, REPOSITORY, "--picture", path), 4, said)
    assert not hub.asked


@pytest.mark.slow
def test_it_works_in_a_process_of_its_own(
    hub: Hub, bundle: Path, toy_site: Path, tmp_path: Path
) -> None:
    """With the variables that users set, and nothing else changed."""
    paths = [str(toy_site), *(path for path in sys.path if path)]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PPAP_PLUGINS": "ppap-plugin-toy",
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": hub_server.WRITE,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for words in (["push", bundle, REPOSITORY], ["pull", REPOSITORY, "--out", tmp_path / FILE]):
        command = [sys.executable, "-m", "ppap_framework", "experts", *map(str, words)]
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
    verify_bundle(tmp_path / FILE)
