"""A bundle comes back whole, for what it was trained for, and is refused if a byte was changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from experts_toy import SCHEDULE, Backend, Shift, TinyGuide, experts_of, load, read, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_framework.checkpoints import (
    load_into,
    open_checkpoint,
    save_checkpoint,
    write_safetensors,
)
from ppap_framework.errors import AssetError, PluginError, UsageError
from ppap_framework.experts import (
    BundleInfo,
    ScaleCurve,
    backend_sha256,
    guide_sha256,
    has_experts,
    load_bundle,
    read_bundle_info,
    save_bundle,
    verify_bundle,
    write_curve,
)
from ppap_framework.experts.identity import InputConvention, weights_sha256
from ppap_framework.noise import NoiseLevel, cosine_schedule


def refusal(
    path: Path, model: TinyGuide, backend: Backend | None = None, **kwargs: Any
) -> AssetError:
    with pytest.raises(AssetError) as caught:
        load(path, model, backend, **kwargs)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not has_experts(model.network)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.experts.safetensors"
    save_bundle(path, *trained(TinyGuide(), Backend(), metrics={"agreement": [0.9, 0.8, 0.7]}))
    return path


class TestRoundTrip:
    def test_experts_come_back(self, path: Path) -> None:
        found, wanted = load(path, TinyGuide(), Backend()), experts_of(TinyGuide())
        level = NoiseLevel(SCHEDULE.log_snr[torch.tensor([0, 40, 99])])
        x = torch.randn(3, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(read(found, x, level), read(wanted, x, level))
        assert found.ranges == wanted.ranges  # to the last bit

    def test_what_it_says_of_itself(self, path: Path) -> None:
        model, info = TinyGuide(), read_bundle_info(path)
        assert len(info) == 3
        assert info.guide.sha256 == guide_sha256(model)
        assert (info.guide.component, info.guide.checkpoint) == ("look", "first")
        assert info.backend.sha256 == backend_sha256(Backend())
        assert (info.schedule, info.timesteps) == ("linear", (0, 33, 66, 100))
        assert info.resolution == (8, 8)
        assert info.input == InputConvention((3, 8, 8), (-1, -1, -1), (1, 1, 1))
        assert info.network_parameters == sum(p.numel() for p in model.network.parameters())
        assert info.expert_parameters == (13,) * 3
        assert info.metrics == {"agreement": [0.9, 0.8, 0.7]}
        assert info.recipe["iterations"] == 10
        assert (info.seed, info.data_sha256) == (7, None)
        assert BundleInfo.from_json(info.to_json()) == info

    def test_equal_content_gives_equal_bytes(self, path: Path, tmp_path: Path) -> None:
        again, other = (tmp_path / f"{name}.experts.safetensors" for name in ("again", "other"))
        experts, info = trained(TinyGuide(), Backend(), metrics={"agreement": [0.9, 0.8, 0.7]})
        save_bundle(again, experts, info)
        assert again.read_bytes() == path.read_bytes()
        save_bundle(other, experts, attrs.evolve(info, seed=8))
        assert other.read_bytes() != path.read_bytes()
        curve = ScaleCurve((-3.0, 0.1), (1 / 3, 300.0), (99.0, 0.05))
        write_curve(other, curve)
        assert read_bundle_info(other) == attrs.evolve(info, seed=8, curve=curve)

    def test_an_old_file_is_replaced_and_no_other_is_left(self, path: Path) -> None:
        before = path.read_bytes()
        save_bundle(path, *trained(TinyGuide(), Backend(), seed=5))
        assert path.read_bytes() != before
        assert list(path.parent.iterdir()) == [path]

    def test_what_cannot_be_saved(self, tmp_path: Path) -> None:
        experts, info = trained(TinyGuide(), Backend())
        for name in ("toy.safetensors", ".experts.safetensors"):
            with pytest.raises(UsageError, match="cannot be called"):
                save_bundle(tmp_path / name, experts, info)
        (tmp_path / "file").touch()
        with pytest.raises(AssetError, match="cannot write"):
            save_bundle(tmp_path / "file" / "toy.experts.safetensors", experts, info)
        _, other = trained(TinyGuide(), Backend(), number=4)
        with pytest.raises(ValueError, match="of other experts"):
            save_bundle(tmp_path / "toy.experts.safetensors", experts, other)
        assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def biased(model: TinyGuide) -> None:
    bias = model.network[0].bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(9.0))


class TestMatch:
    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model.__init__(seed=1),
            biased,
            lambda model: model.network[1].running_mean.add_(1),
        ],
    )
    def test_another_guide_s_weights(self, path: Path, change: Callable[[TinyGuide], Any]) -> None:
        model = TinyGuide()
        change(model)
        for waived in ((), ("backend", "resolution")):
            error = refusal(path, model, Backend(), allow_mismatch=waived)
            assert "guide: they are for the weights of look 'first'" in error.message
            assert guide_sha256(model)[:12] in error.message
            assert "ppap adapt" in error.hint

    def test_everything_that_differs_is_told_at_once(self, path: Path) -> None:
        message = refusal(path, TinyGuide(mean=0.4), Backend(seed=3, size=16)).message
        for words in (
            "input: their network was fed",
            "backend: ",
            "images of 8 x 8, and these are 16",
        ):
            assert words in message
        message = refusal(path, TinyGuide(std=0.25), Backend(), allow_mismatch=["backend"]).message
        assert "input: their network was fed" in message

    def test_what_may_be_waived(self, path: Path) -> None:
        backend = Backend(seed=3, size=16)
        error = refusal(path, TinyGuide(), backend, allow_mismatch=["backend"])
        assert "backend: " not in error.message
        assert error.hint == "--allow-mismatch resolution"
        assert len(load(path, TinyGuide(), backend, allow_mismatch=["backend", "resolution"])) == 3
        for name in ("guide", "input", "weights"):
            with pytest.raises(UsageError, match=f"mismatch of '{name}' cannot be allowed"):
                load(path, TinyGuide(), allow_mismatch=[name])

    @pytest.mark.parametrize("backend", [None, Backend(schedule=cosine_schedule(1000))])
    def test_no_backend_and_another_schedule_are_no_difference(
        self, path: Path, backend: Backend | None
    ) -> None:
        assert len(load(path, TinyGuide(), backend)) == 3

    def test_a_guide_that_has_experts(self, path: Path) -> None:
        model = TinyGuide()
        experts = load(path, model)
        with pytest.raises(ValueError, match="before experts are attached"):
            load(path, model)
        experts.detach()
        load(path, model)

    def test_an_adapter_that_is_missing_or_another(self, path: Path) -> None:
        model = TinyGuide()
        with pytest.raises(PluginError, match="'shift'"):
            load_bundle(path, model)
        with pytest.raises(AssetError, match=r"cannot be attached: these differ: \['0\.0\.bias"):
            load(path, model, make=lambda config: Shift("weight"))
        assert not has_experts(model.network)


class TestIdentity:
    def test_the_digest_knows_values_and_not_files(self, tmp_path: Path) -> None:
        network = TinyGuide(seed=4).network.half().float()  # so that 16 bits hold it
        digest = weights_sha256(network.state_dict())
        save_checkpoint(tmp_path / "a.safetensors", network.state_dict(), {})
        torch.save({"state_dict": dict(reversed(network.state_dict().items()))}, tmp_path / "b.pt")
        halves = {
            k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()
        }
        save_checkpoint(tmp_path / "c.safetensors", halves, {})
        for file in ("a.safetensors", "b.pt", "c.safetensors"):
            checkpoint = open_checkpoint(tmp_path / file)
            assert weights_sha256(checkpoint.state_dict()) == digest
            model = TinyGuide(seed=9)
            load_into(model.network, checkpoint)
            assert guide_sha256(model) == digest

    def test_the_digest_that_files_depend_on(self) -> None:
        # Written out by hand: a change would orphan every bundle that there is.
        state = {"n": torch.tensor(7), "b": torch.tensor([[0.5, -2.0]], dtype=torch.float16)}
        parts = [
            b"ppap weights 1\n",
            b'["b", "float32", [1, 2]]\n',
            struct.pack("<2f", 0.5, -2.0),
            b'["n", "int64", []]\n',
            struct.pack("<q", 7),
        ]
        assert weights_sha256(state) == hashlib.sha256(b"".join(parts)).hexdigest()

    def test_the_digest_knows_layout_from_content(self) -> None:
        x, n = torch.randn(2, 3, 4, 5), torch.tensor(3)
        digest = weights_sha256({"x": x, "n": n})
        assert digest == weights_sha256({"n": n, "x": x.to(memory_format=torch.channels_last)})
        different: list[dict[str, torch.Tensor]] = [
            {"x": x, "n": torch.tensor(4)},
            {"x": x, "m": n},
            {"x": x.reshape(2, 3, 20), "n": n},
            {"x": x, "n": n[None]},
            {"x": x, "n": n.float()},
            {"x": x},
            {},
            {"x": x.double(), "n": n},
            {"x": x.to(torch.complex64), "b": n.bool(), "e": torch.empty(0, 3)},
        ]
        assert len({digest, *map(weights_sha256, different)}) == 1 + len(different)

    def test_stages_of_a_backend_count_apart(self) -> None:
        one, two = Backend(seed=1), Backend(seed=2)
        assert backend_sha256(one) == backend_sha256(Backend(seed=1)) != backend_sha256(two)

    def test_input_as_it_reaches_the_network(self) -> None:
        model = TinyGuide(mean=0.25, std=0.125)
        found = InputConvention.measure(model, (4, 6))
        assert found == InputConvention((3, 4, 6), (-2.0,) * 3, (6.0,) * 3)
        assert found.matches(InputConvention((3, 4, 6), (-2.01,) * 3, (6.01,) * 3))
        assert not found.matches(InputConvention((3, 4, 6), (-2.1,) * 3, (6.0,) * 3))
        assert not found.matches(InputConvention((3, 6, 4), (-2.0,) * 3, (6.0,) * 3))

    def test_measuring_runs_nothing_and_leaves_nothing(self) -> None:
        model = TinyGuide().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        InputConvention.measure(model, (8, 8))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert not model.network._forward_pre_hooks
        model.forward = lambda images, level=None: model.network[0](images)  # around its network
        assert InputConvention.measure(model, (8, 8)) is None

    def test_a_network_that_takes_names_or_no_images(self) -> None:
        class Named(nn.Module):
            def forward(self, *, pixels: Any) -> Any:
                return pixels

        class Call(TinyGuide):
            def __init__(self, given: Any) -> None:
                super().__init__()
                self.network, self.given = Named(), given

            def forward(self, images: Any, level: Any = None) -> Any:
                return self.network(pixels=self.given(images))

        features = InputConvention.measure(Call(lambda x: x.mean((2, 3))), (8, 8))
        assert features == InputConvention((3,), (-1.0,) * 3, (1.0,) * 3)
        assert InputConvention.measure(Call(lambda x: "nothing"), (8, 8)) is None


class TestDescription:
    @pytest.fixture
    def said(self) -> dict[str, Any]:
        _, info = trained(TinyGuide(), Backend())
        said: dict[str, Any] = json.loads(info.to_json())
        return said

    def test_everything_wrong_is_told_at_once(self, said: dict[str, Any]) -> None:
        del said["guide"]["sha256"]
        del said["recipe"]
        said |= {
            "seed": "7", "resolution": [8], "mine": 1, "adapters": [],
            "boundaries": [1.0, "x"],
        }  # fmt: skip
        with pytest.raises(ValueError) as caught:
            BundleInfo.from_json(json.dumps(said))
        for part in (
            "'mine' is unknown", "guide: sha256 is missing", "recipe is missing",
            "seed must be a whole number, not '7'", "resolution must be two",
            "adapters: ", "boundaries must be a list of finite numbers",
        ):  # fmt: skip
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"boundaries": [1.0, 2.0]}, "fall strictly"),
            ({"timesteps": [0, 50, 100]}, "timesteps must be 4 rising numbers"),
            ({"timesteps": [0, 50, 40, 100]}, "timesteps must be 4 rising numbers"),
            ({"curve": {"log_snr": [0], "scales": [0], "errors": [1]}}, "curve: .* above 0"),
            ({"curve": {"log_snr": [0], "scales": [1]}}, "curve: errors is missing"),
            ({"curve": [1.0]}, "curve: .* is no object"),
            ({"expert_parameters": [1]}, "expert_parameters must be 3 numbers"),
            ({"image_space": "latent"}, "image_space must be 'rgb', not 'latent'"),
            ({"data_sha256": "abc"}, "data_sha256 must be 64 hexadecimal digits"),
            ({"guide": 3}, "guide: 3 is no object"),
            ({"input": {"shape": [3]}}, "input: black is missing; white is missing"),
            ({"seed": True}, "seed must be a whole number"),
            ({"boundaries": [10**400, 0]}, "boundaries: int too large"),
            ({"format": 2}, "format 2, and this version reads 1"),
            ({"adapters": [{"name": "a", "options": {}}] * 2}, "different names"),
            ({"metrics": [1]}, "metrics must be an object of finite JSON"),
            ({"recipe": {"through": "glass"}}, "read noisy or detached images, not glass"),
            ({"recipe": {"through": ["noisy"]}}, r"detached images, not \('noisy',\)"),
            ({"recipe": {"through": ["noisy", 5, "noisy"]}}, "detached images, not"),
        ],
    )
    def test_contradictions(self, said: dict[str, Any], change: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            BundleInfo.from_json(json.dumps(said | change))

    @pytest.mark.parametrize("text", ["", "[]", "3", '{"format": NaN}', "[" * 100_000, "{"])
    def test_no_description_at_all(self, text: str) -> None:
        with pytest.raises(ValueError) as caught:
            BundleInfo.from_json(text)
        assert "\n" not in str(caught.value)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "toy.experts.safetensors"
    experts, info = trained(TinyGuide(), Backend())
    next(experts.parameters(1)).data[0] = torch.nan
    save_bundle(path, experts, info)
    with pytest.raises(AssetError, match=r"'shift/1\.0\.bias' is not finite"):
        verify_bundle(path)
    with pytest.raises(ValueError, match="finite JSON"):
        attrs.evolve(info, metrics={"loss": float("nan")})


SEAL = re.compile(rb'"ppap\.sha256":"([0-9a-f]{64})"')
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def why(file: Path) -> str:
    return refusal(file, TinyGuide(), Backend()).message


def bundle(file: Path, seed: int = 0, **changes: int) -> Path:
    model = TinyGuide(width=changes.pop("width", 4), seed=changes.pop("network", 0))
    save_bundle(file, *trained(model, Backend(), seed=seed, **changes))
    return file


def header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def seal(file: Path) -> None:
    """What somebody would do who wants a changed file to pass for a sound one."""
    content = file.read_bytes()
    at = SEAL.search(content)
    assert at
    opened = content[: at.start(1)] + b"0" * 64 + content[at.end(1) :]
    digest = hashlib.sha256(opened).hexdigest().encode()
    file.write_bytes(content[: at.start(1)] + digest + content[at.end(1) :])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return bundle(tmp_path / "toy.experts.safetensors")


def test_the_digest_is_of_the_whole_file_with_the_digest_zeroed(file: Path) -> None:
    before = file.read_bytes()
    seal(file)
    assert file.read_bytes() == before
    assert len(load_file(file)) == 9  # and any reader of safetensors can read it


@pytest.mark.parametrize("cut", [False, True])
@many
@given(data=st.data())
def test_a_flipped_byte_or_the_end_anywhere(file: Path, cut: bool, data: st.DataObject) -> None:
    content = bundle(file).read_bytes()
    # The header is what can be misread; tensors are the same all over.
    at = data.draw(st.integers(0, header_of(content) - 1) | st.integers(0, len(content) - 1))
    flipped = bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    file.write_bytes(content[:at] + (b"" if cut else flipped))
    why(file)


def test_every_bit_of_the_digest_and_around_it(file: Path) -> None:
    content = file.read_bytes()
    at = SEAL.search(content)
    assert at
    for position in range(at.start() - 2, at.end() + 2):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(AssetError):
                verify_bundle(file)


@pytest.mark.parametrize("more", [b"\0", b" ", b"\0" * 64])
def test_something_behind_the_end(file: Path, more: bytes) -> None:
    file.write_bytes(file.read_bytes() + more)
    assert "safetensors" in why(file)


def test_a_space_for_a_tab_in_the_padding(file: Path) -> None:
    # Still valid JSON that says the same: only the digest can tell.
    for extra in range(8):
        experts, info = trained(TinyGuide(), Backend())
        save_bundle(file, experts, attrs.evolve(info, recipe={"note": "x" * extra}))
        content = file.read_bytes()
        header = header_of(content)
        if content[header - 1 : header] == b" ":
            break
    file.write_bytes(content[: header - 1] + b"\t" + content[header:])
    assert "changed after it was written" in why(file)


def test_tensors_of_another_bundle(file: Path, tmp_path: Path) -> None:
    # The same shapes, so that the header fits without a change.
    mine, other = file.read_bytes(), bundle(tmp_path / "b.experts.safetensors", 1).read_bytes()
    assert len(mine) == len(other)
    file.write_bytes(mine[: header_of(mine)] + other[header_of(mine) :])
    assert "changed after it was written" in why(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 2, "seed": 1}, "expert 2 has no tensors of 'shift'"),
        ({"width": 8}, "cannot be attached: '0.0.bias' has another shape"),
    ],
)
def test_tensors_of_another_bundle_under_a_header_made_to_fit(
    file: Path, tmp_path: Path, change: dict[str, int], words: str
) -> None:
    other = bundle(tmp_path / "b.experts.safetensors", **change)
    write_safetensors(file, load_file(other), dict(open_checkpoint(file).metadata))
    assert "changed after it was written" in why(file)
    seal(file)  # which anybody can; the description and the tensors still disagree
    assert words in why(file)


def test_another_guide_s_bundle(file: Path) -> None:
    bundle(file, network=3)
    assert "guide: they are for the weights of look 'first'" in why(file)


Change = Callable[[dict[str, str], dict[str, Tensor]], object]


def described(**change: object) -> Change:
    def apply(metadata: dict[str, str], state: dict[str, Tensor]) -> None:
        metadata["ppap.experts"] = json.dumps(json.loads(metadata["ppap.experts"]) | change)

    return apply


def swap(metadata: dict[str, str], state: dict[str, Tensor]) -> None:
    other = {"0": "1", "1": "0", "2": "2"}
    swapped = {f"shift/{other[key[6]]}{key[7:]}": tensor for key, tensor in state.items()}
    state.update({key: tensor.clone() for key, tensor in swapped.items()})


@pytest.mark.parametrize(
    ("change", "sealed", "words"),
    [
        (swap, False, "changed after it was written"),
        (lambda m, s: m.pop("ppap.experts"), True, "is no bundle of experts"),
        (lambda m, s: m.update({"ppap.experts": "{"}), True, "cannot be used"),
        (lambda m, s: m.update({"ppap.experts": '{"format": 9}'}), True, "format 9"),
        (described(seed=None), True, "seed must be a whole number"),
        (
            lambda m, s: s.update({"shift/3.0.bias": torch.ones(4)}),
            True,
            "tensor 'shift/3.0.bias' is of no expert",
        ),
        (lambda m, s: (m.clear(), s.clear()), False, "carries no SHA-256 of itself"),
    ],
)
def test_a_file_that_was_written_anew(file: Path, change: Change, sealed: bool, words: str) -> None:
    metadata = dict(open_checkpoint(file).metadata)
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(metadata, state)
    write_safetensors(file, state, metadata)
    if sealed:
        seal(file)
    assert words in why(file)


_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from experts_toy import Backend, TinyGuide, trained
from ppap_framework.experts import save_bundle, verify_bundle

file, kills = Path(sys.argv[2]), int(sys.argv[3])
# Megabytes, so that writing takes its time and is what most kills interrupt.
versions = [
    trained(TinyGuide(width=1 << 14), Backend(), seed=seed, ending="") for seed in (0, 1)
]
contents = []
for experts, info in versions:
    save_bundle(file, experts, info)
    contents.append(file.read_bytes())
assert contents[0] != contents[1]

random.seed(int(sys.argv[4]))
interrupted = 0
for _ in range(kills):
    writer = os.fork()
    if writer == 0:
        while True:
            for experts, info in versions:
                save_bundle(file, experts, info)
    first = file.stat().st_ino
    while file.stat().st_ino == first:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    assert file.read_bytes() in contents, "neither the old one nor the new one"
    verify_bundle(file)
    left = [entry for entry in file.parent.iterdir() if entry != file]
    assert not any(entry.name.endswith(".experts.safetensors") for entry in left), left
    interrupted += bool(left)
    for entry in left:
        entry.unlink()
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked, so that killing is quick")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_writers(tmp_path: Path, kills: int) -> None:
    file = tmp_path / "toy.experts.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(file), str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # kills that found a file half-written
