"""Checkpoints: what is sound comes back unchanged, what is not is refused in one line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppap_framework.checkpoints import (
    load_into,
    open_checkpoint,
    read_architecture,
    save_checkpoint,
    write_safetensors,
)
from ppap_framework.errors import AssetError
from ppap_framework.files import file_sha256

ARCHITECTURE = {"model": "tiny", "widths": [3, 4]}
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def network(width: int = 4) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def refusal(path: Path, module: nn.Module | None = None) -> str:
    """The message with which a file is refused, which must be one line with a hint."""
    with pytest.raises(AssetError) as caught:
        load_into(module or network(), open_checkpoint(path))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, network().state_dict(), ARCHITECTURE, {"seed": 1})
    return path


class TestRoundTrip:
    def test_safetensors(self, saved: Path) -> None:
        checkpoint = open_checkpoint(saved)
        assert checkpoint.architecture == ARCHITECTURE
        assert json.loads(checkpoint.metadata["ppap.notes"]) == {"seed": 1}
        assert checkpoint.name == "weights.safetensors"
        assert equal(checkpoint.state_dict(), network().state_dict())
        save_file(network().state_dict(), saved, {"format": "pt"})  # by the library
        assert open_checkpoint(saved).metadata == {"format": "pt"}
        assert equal(open_checkpoint(saved).state_dict(), network().state_dict())

    @pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "anything"])
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("wrapping", [None, "state_dict", "model", "net"])
    def test_torch_files(
        self, tmp_path: Path, suffix: str, zipped: bool, wrapping: str | None
    ) -> None:
        path = tmp_path / f"weights.{suffix}"
        state = network().state_dict()
        content = state if wrapping is None else {wrapping: state, "epoch": 3}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        checkpoint = open_checkpoint(path)
        assert checkpoint.architecture == {}
        assert equal(checkpoint.state_dict(), state)

    @quick
    @given(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda s: s != "__metadata__"),
            st.tuples(
                st.sampled_from(["float32", "float16", "bfloat16", "int64", "bool"]),
                st.lists(st.integers(0, 4), max_size=3),
            ),
            max_size=5,
        ),
        st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(max_size=5), max_size=3),
    )
    def test_the_library_reads_what_is_written(
        self, tmp_path: Path, kinds: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        path = tmp_path / "any.safetensors"
        tensors = {
            n: torch.randint(0, 2, shape).to(getattr(torch, dtype))
            for n, (dtype, shape) in kinds.items()
        }
        write_safetensors(path, tensors, metadata)
        assert equal(load_file(path), tensors)
        assert equal(open_checkpoint(path).state_dict(), tensors)
        assert open_checkpoint(path).metadata == metadata

    def test_equal_content_gives_equal_bytes(self, saved: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.safetensors"
        state = dict(reversed(network().state_dict().items()))
        save_checkpoint(other, state, dict(reversed(ARCHITECTURE.items())), {"seed": 1})
        assert other.read_bytes() == saved.read_bytes()

    def test_shared_and_strided_tensors(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        tensors = {"a": base, "b": base, "c": base.T, "d": base[1:2, ::2]}
        write_safetensors(tmp_path / "x.safetensors", tensors, {})
        assert equal(load_file(tmp_path / "x.safetensors"), tensors)


class Odd(nn.Linear):
    """A layer with a counter, a mask, an index and a state beside its tensors."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        nn.init.ones_(self.weight)
        self.register_buffer("mask", torch.tensor([True, True]))
        self.register_buffer("index", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("count", torch.tensor(0))
        self.state: Any = {"scale": 1.0}

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class TestWhatTorchLoadsStrictly:
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "net._orig_mod."])
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    @pytest.mark.parametrize("counters", [True, False])
    @pytest.mark.parametrize("inner", [False, True])
    def test_names(
        self, tmp_path: Path, prefix: str, suffix: str, counters: bool, inner: bool
    ) -> None:
        path, state = tmp_path / f"x.{suffix}", network().state_dict()
        written = {
            f"{prefix}{name}": tensor
            for name, tensor in state.items()
            if counters or not name.endswith("num_batches_tracked")
        }
        save_file(written, path) if suffix == "safetensors" else torch.save(written, path)
        loaded = nn.Module() if inner else network(width=4).apply(zeroed)
        if inner:  # a network with such a part of its own
            loaded.model = network(width=4).apply(zeroed)
        load_into(loaded, open_checkpoint(path))
        found = loaded.state_dict()
        assert equal({name.removeprefix("model."): x for name, x in found.items()}, state)

    @pytest.mark.parametrize(
        "changes",
        [
            {"count": torch.tensor(7, dtype=torch.int32)},
            {"count": torch.tensor(7.0)},
            {"count": torch.tensor([7])},
            {"mask": torch.tensor([1, 0], dtype=torch.uint8)},
            {"index": torch.arange(3, dtype=torch.int16)},
            {"weight": torch.ones(2, 2, dtype=torch.float64)},
            {"_extra_state": {"scale": 7.0, "names": ["a"]}},
            {"_extra_state": torch.arange(9.0)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_values(self, tmp_path: Path, changes: dict[str, Any], prefix: str) -> None:
        """torch's own loading is the oracle."""
        state = Odd().state_dict() | changes
        torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "x.pt")
        loaded, oracle = Odd(), Odd()
        oracle.load_state_dict(state)
        load_into(loaded, open_checkpoint(tmp_path / "x.pt"))
        ours, theirs = loaded.state_dict(), oracle.state_dict()
        assert str(ours.pop("_extra_state")) == str(theirs.pop("_extra_state"))
        assert equal(ours, theirs)
        assert {n: x.dtype for n, x in ours.items()} == {n: x.dtype for n, x in theirs.items()}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"count": torch.tensor(7.5)}, "'count' () instead of () of int64"),
            ({"mask": torch.tensor([1, 2])}, "'mask' (2,) of int64 instead of (2,) of bool"),
            ({"weight": torch.ones(2, 2, dtype=torch.int8)}, "of int8 instead of (2, 2)"),
            ({"_extra_state": None}, "1 missing ('_extra_state')"),
            ({"bias._extra_state": 3}, "1 unexpected ('bias._extra_state')"),
        ],
    )
    def test_values_that_would_change(
        self, tmp_path: Path, changes: dict[str, Any], said: str
    ) -> None:
        state = {n: x for n, x in (Odd().state_dict() | changes).items() if x is not None}
        torch.save(state, tmp_path / "x.pt")
        with pytest.raises(AssetError) as caught:
            load_into(Odd(), open_checkpoint(tmp_path / "x.pt"))
        assert said in caught.value.message

    def test_nothing(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "x.pt")
        load_into(nn.Identity(), open_checkpoint(tmp_path / "x.pt"))

    def test_extra_state_is_no_tensor_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="cannot hold '_extra_state', which is no tensor"):
            save_checkpoint(tmp_path / "x.safetensors", Odd().state_dict(), {})
        assert not [*tmp_path.iterdir()]

    @pytest.mark.filterwarnings("ignore:.torch.jit")
    def test_torch_script(self, tmp_path: Path) -> None:
        torch.jit.trace(network().eval(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "x.pt")  # type: ignore[no-untyped-call]
        assert "is a TorchScript program" in refusal(tmp_path / "x.pt")

    def test_another_zip(self, saved: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.write(saved)
        assert "is a zip archive that torch did not write" in refusal(tmp_path / "x.pt")


@torch.no_grad()
def zeroed(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.zero_()


class TestArchitecture:
    @attrs.frozen(kw_only=True)
    class Record:
        model: str = attrs.field(validator=attrs.validators.instance_of(str))
        widths: list[int]
        depth: int = 1

    def test_read(self, saved: Path) -> None:
        read = read_architecture(open_checkpoint(saved), self.Record)
        assert read == self.Record(model="tiny", widths=[3, 4])

    @pytest.mark.parametrize(
        ("stated", "expected"),
        [
            ({}, "does not state its architecture"),
            ({"model": "a"}, "missing 1 required keyword-only argument: 'widths'"),
            ({**ARCHITECTURE, "colour": 1}, "unexpected keyword argument 'colour'"),
            ({"colour": 1}, "of another architecture: got an unexpected keyword argument 'colour'"),
            ({"model": 3, "widths": []}, "'model' must be"),
        ],
    )
    def test_one_line(self, tmp_path: Path, stated: dict[str, Any], expected: str) -> None:
        save_checkpoint(tmp_path / "x", {}, stated)
        with pytest.raises(AssetError) as caught:
            read_architecture(open_checkpoint(tmp_path / "x"), self.Record)
        assert expected in caught.value.message
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_must_be_an_object(self, saved: Path) -> None:
        write_safetensors(saved, network().state_dict(), {"ppap.architecture": "[1]"})
        assert "architecture" in refusal(saved)


class TestLoadInto:
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_every_value_arrives(self, saved: Path, device: str) -> None:
        with torch.device(device):
            module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
        load_into(module, open_checkpoint(saved))
        assert equal(module.state_dict(), network().state_dict())
        assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_half_precision_is_cast(self, tmp_path: Path) -> None:
        state = network().state_dict()
        halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
        save_checkpoint(tmp_path / "half.safetensors", halves, {})
        module = network()
        load_into(module, open_checkpoint(tmp_path / "half.safetensors"))
        assert equal(module.state_dict(), {n: t.to(state[n].dtype) for n, t in halves.items()})

    def test_tied_weights_are_cast_from_a_bare_pickle(self, tmp_path: Path) -> None:
        """Nothing may be released that is not mapped: the second would be zeros."""
        weight = torch.randn(2000, 1000)
        state = {"0.weight": weight, "1.weight": weight}
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        module = nn.Sequential(*(nn.Linear(1000, 2000, bias=False).half() for _ in range(2)))
        load_into(module, open_checkpoint(tmp_path / "x.pt"))
        assert all(torch.equal(own, weight.half()) for own in module.parameters())

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    @pytest.mark.parametrize("name", ["mapped.safetensors", "mapped.pt"])
    def test_tensors_stay_in_the_file(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        if path.suffix == ".pt":
            torch.save(network().state_dict(), path)
        else:
            save_checkpoint(path, network().state_dict(), {})
        module = network()
        load_into(module, open_checkpoint(path))
        lines = Path("/proc/self/maps").read_text().splitlines()
        bounds = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
        for tensor in module.state_dict().values():
            at = tensor.data_ptr()
            assert any(int(low, 16) <= at < int(high, 16) for low, high in bounds)

    def test_changes_stay_out_of_the_file(self, saved: Path) -> None:
        before = saved.read_bytes()
        module = network()
        load_into(module, open_checkpoint(saved))
        with torch.no_grad():
            next(module.parameters()).add_(1)
        assert saved.read_bytes() == before

    def test_another_architecture_says_what_differs(self, saved: Path) -> None:
        message = refusal(saved, network(5))
        assert "6 of another shape" in message
        assert "'0.weight' (4, 3, 3, 3) instead of (5, 3, 3, 3)" in message
        message = refusal(saved, nn.Linear(2, 2))
        for part in ("the 2 keys of Linear", "2 missing ('weight', 'bias')", "7 unexpected"):
            assert part in message
        ints = {name: tensor.to(torch.int32) for name, tensor in network().state_dict().items()}
        save_checkpoint(saved, ints, {})
        assert "of int32 instead of" in refusal(saved)

    def test_nothing_is_loaded_if_something_differs(self, saved: Path) -> None:
        state = network().state_dict()
        del state["1.bias"]
        save_checkpoint(saved, state, {})
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        assert "1 missing ('1.bias')" in refusal(saved, module)
        assert equal(module.state_dict(), before)


class TestBadPaths:
    def test_missing_and_folders(self, saved: Path) -> None:
        message, _, hint = refusal(saved.with_name("wieghts.safetensors")).partition("(")
        assert "no file" in message
        assert saved.name in hint
        assert "no folder" in refusal(saved.parent / "no" / "weights.pt")
        message = refusal(saved.parent)
        assert "is a folder" in message
        assert saved.name in message

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            *((name, b"", "is empty") for name in ("x.safetensors", "x.pt")),
            ("x.pt", b"<!doctype html><html>", "web page"),
            ("x.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
            ("x.pt", b"hello, world, this is text", "neither"),
        ],
    )
    def test_other_files(self, tmp_path: Path, name: str, content: bytes, expected: str) -> None:
        (tmp_path / name).write_bytes(content)
        assert expected in refusal(tmp_path / name)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, saved: Path) -> None:
        saved.chmod(0)
        assert "cannot read" in refusal(saved)

    def test_newlines_in_names_do_not_break_the_line(self, tmp_path: Path) -> None:
        refusal(tmp_path / "a\nb.pt")
        save_checkpoint(tmp_path / "x.safetensors", {"a\nb": torch.zeros(1)}, {})
        refusal(tmp_path / "x.safetensors")


def container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: object, end: object, shape: object = (2,), dtype: object = "F32") -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "header beyond the file": container({}, length=10**6),
    "absurd header": container({}, length=2**63),
    "no json": container(b"{nonsense}"),
    "no object": container(b"[1]"),
    "not utf-8": container(b'{"\xff": 1}'),
    "deep json": container(b'{"a":' * 100_000),
    "huge number": container(b'{"a": 1' + b"0" * 10_000 + b"}"),
    "metadata not strings": container({"__metadata__": {"a": 1}}),
    "metadata not an object": container({"__metadata__": "a"}),
    "entry not an object": container({"a": 3}),
    "entry without dtype": container({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": container({"a": entry(0, 8, dtype="F31")}, bytes(8)),
    "dtype not a string": container({"a": entry(0, 8, dtype=["F32"])}, bytes(8)),
    "dtype of another width": container({"a": entry(0, 8, dtype="F64")}, bytes(8)),
    "shape of another size": container({"a": entry(0, 8, shape=[3])}, bytes(8)),
    "negative shape": container({"a": entry(0, 8, shape=[-1, -2])}, bytes(8)),
    "overflowing shape": container({"a": entry(0, 8, shape=[2**62, 8])}, bytes(8)),
    "fractional shape": container({"a": entry(0, 8, shape=[2.0])}, bytes(8)),
    "boolean shape": container({"a": entry(0, 4, shape=[True])}, bytes(4)),
    "end before begin": container({"a": entry(8, 0)}, bytes(8)),
    "negative offset": container({"a": entry(-8, 0)}, bytes(8)),
    "out of range": container({"a": entry(0, 8)}, bytes(4)),
    "overlap": container({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "same bytes twice": container({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
    "gap": container({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "gap at the start": container({"a": entry(4, 12)}, bytes(12)),
    "bytes left over": container({"a": entry(0, 8)}, bytes(12)),
}


class TestLyingHeaders:
    @pytest.mark.parametrize("lie", LIES)
    def test_is_refused_when_opened(self, tmp_path: Path, lie: str) -> None:
        path = tmp_path / "liar.safetensors"
        path.write_bytes(LIES[lie])
        with pytest.raises(AssetError) as caught:
            open_checkpoint(path)
        assert "truncated or damaged checkpoint" in caught.value.message
        assert "\n" not in str(caught.value)

    def test_absurd_header_is_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.safetensors"
        path.write_bytes(container(b"{", length=150_000_000))
        os.truncate(path, 200_000_000)
        assert "headertoolarge" in refusal(path).lower().replace(" ", "")

    def test_many_dimensions_fit_no_network(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes(container({"0.bias": entry(0, 8, shape=[2] + [1] * 100)}, bytes(8)))
        assert "1 of another shape" in refusal(path)

    @pytest.mark.parametrize("names", [["abc"], ["abc", "abc"]], ids=["unaligned", "twice"])
    def test_harmless_oddities(self, tmp_path: Path, names: list[str]) -> None:
        text = ",".join(f'"{name}":{json.dumps(entry(0, 8))}' for name in names)
        (tmp_path / "x.safetensors").write_bytes(container(f"{{{text}}}".encode(), bytes(8)))
        state = open_checkpoint(tmp_path / "x.safetensors").state_dict()
        assert equal(state, {"abc": torch.zeros(2)})

    @quick
    @given(st.data())
    def test_a_changed_header_is_noticed_or_harmless(
        self, saved: Path, data: st.DataObject
    ) -> None:
        """Outside of __metadata__, no changed byte of the header may change what is loaded."""
        write_safetensors(saved, network().state_dict(), {})
        whole = saved.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        index = data.draw(st.integers(0, header - 1))
        byte = data.draw(st.integers(0, 255))
        path = saved.with_name("changed.safetensors")
        path.write_bytes(whole[:index] + bytes([byte]) + whole[index + 1 :])
        module = network()
        with contextlib.suppress(AssetError):
            load_into(module, open_checkpoint(path))
        assert equal(module.state_dict(), network().state_dict())


class TestPickles:
    def test_objects_are_named(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
        assert "argparse.Namespace" in refusal(tmp_path / "x.pt")

    @pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
    @quick
    @given(st.data())
    def test_truncation_is_noticed(self, tmp_path: Path, kind: str, data: st.DataObject) -> None:
        path = tmp_path / ("short.safetensors" if kind == "safetensors" else "short.pt")
        if kind == "safetensors":
            save_checkpoint(path, network().state_dict(), ARCHITECTURE)
        else:
            zipped = kind == "zip"
            torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        refusal(path)

    NONE = (torch.zeros(3), [torch.zeros(3)], {"a": 1}, {"state_dict": {"a": [1]}})

    @pytest.mark.parametrize("content", [*NONE, {"a": torch.zeros(2, 2).to_sparse()}])
    def test_no_state_dict(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "x.pt")
        assert "holds no state dict" in refusal(tmp_path / "x.pt")

    def test_tied_weights_are_no_bomb(self, tmp_path: Path) -> None:
        weight = torch.randn(100, 100)
        state = {"embedding": weight, "head": weight}
        torch.save(state, tmp_path / "x.pt")
        assert equal(open_checkpoint(tmp_path / "x.pt").state_dict(), state)


class TestSaving:
    def test_a_failure_leaves_the_old_file(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = saved.read_bytes()
        full = mock.Mock(side_effect=OSError(28, "No space left on device"))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(AssetError, match="No space left"):
            save_checkpoint(saved, network(8).state_dict(), {})
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]
        with pytest.raises(AssetError, match="cannot write"):
            save_checkpoint(saved / "x.safetensors", {}, {})


class TestDigest:
    def test_known_values(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-4, example B.1
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert file_sha256(tmp_path / "x") == expected
        with pytest.raises(AssetError, match="cannot read"):
            file_sha256(tmp_path / "y")

    def test_a_changed_file_is_read_again(self, saved: Path) -> None:
        checkpoint = open_checkpoint(saved)
        before = checkpoint.sha256
        saved.write_bytes(saved.read_bytes() + b" ")
        assert checkpoint.sha256 != before

    def test_a_file_changed_within_one_tick_of_the_clock(self, saved: Path) -> None:
        before, time = file_sha256(saved), saved.stat().st_mtime_ns
        saved.write_bytes(saved.read_bytes()[::-1])
        os.utime(saved, ns=(time, time))
        assert file_sha256(saved) != before

    def test_a_settled_file_is_read_once(
        self, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.utime(saved, ns=(10**18, 10**18))
        before = file_sha256(saved)
        monkeypatch.setattr(Path, "open", None)
        assert file_sha256(saved) == before
