"""S3 as a real client sees it: a server on this machine, asked by s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from commands import Run, refused

from ppap_framework.data import SyntheticData

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # those of the server and of the client
]

FILE = "mine.experts.safetensors"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a bucket called "bucket"; addresses and keys are in the usual variables."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    requests.post(f"{address}/moto-api/reset", timeout=10)  # its buckets are the process's
    server.stop()


def test_experts(typed: Run, bucket: Any, bundle: Path, other: Path, tmp_path: Path) -> None:
    url, out = "s3://bucket/experts", tmp_path / FILE
    assert typed("experts", "push", bundle, url) == (0, f"{url}/{FILE}\n", "")
    assert {Path(name).name for name in bucket.find("bucket/experts")} == {
        *(FILE, f"{FILE}.sha256", "mine.md")
    }
    assert typed("experts", "pull", url, "--out", out).code == 0
    assert out.read_bytes() == bundle.read_bytes()
    refused(typed("experts", "push", other, url), 2, "--overwrite")
    bucket.pipe_file(f"bucket/experts/{FILE}", other.read_bytes())
    refused(typed("experts", "pull", url, "--out", tmp_path / "b" / FILE), 4, "the listing says")


def test_a_set(typed: Run, bucket: Any, drawn: Path) -> None:
    url = "s3://bucket/sets/a"
    assert typed("data", "push", drawn, url) == (0, f"{url}\n", "")
    assert typed("data", "verify", url).code == 0
    np.testing.assert_array_equal(SyntheticData(url).load(), SyntheticData(drawn).load())
    assert typed("data", "push", drawn, url).err.endswith("has these shards already\n")


def test_a_file_of_several_parts(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppap_plugin_hub.storage import FilePlace

    content = np.random.default_rng(0).bytes(60 << 20)  # s3fs sends parts of 50 MiB
    (tmp_path / "large").write_bytes(content)
    place = FilePlace("s3://bucket/large")
    place.put({"large": tmp_path / "large"}, "")
    listed = place.listing()["large"]
    assert listed.size == len(content)
    place.fetch("large", tmp_path / "back", listed)
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize(
    "url, code, said",
    [
        ("s3://bucket/empty", 4, ["no bundle of experts"]),
        ("s3://no-such-bucket/a", 4, ["s3://no-such-bucket/a"]),
    ],
)
def test_what_is_not_there(typed: Run, bucket: Any, url: str, code: int, said: list[str]) -> None:
    refused(typed("experts", "pull", url), code, *said)


def test_a_bucket_that_is_not_there_takes_nothing(typed: Run, bucket: Any, bundle: Path) -> None:
    refused(typed("experts", "push", bundle, "s3://no-such-bucket/a"), 1, "cannot write to")


def test_no_credentials(
    typed: Run, bucket: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    type(bucket).clear_instance_cache()
    refused(typed("experts", "push", bundle, "s3://bucket/a"), 4, "credentials")
