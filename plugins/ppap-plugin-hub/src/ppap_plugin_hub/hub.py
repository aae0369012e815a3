"""Repositories of the Hugging Face Hub, through its own library, `huggingface_hub`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, PpapError, UsageError, one_line
from ppap_plugin_hub.places import Listed, Place, network_is_off, offline


class HubPlace(Place):
    """A repository of the Hugging Face Hub, or a folder in it."""

    def __init__(
        self, repository: str, revision: str | None = None, folder: str = "", kind: str = "model"
    ) -> None:
        self.repository, self.revision, self.kind = repository, revision, kind
        self._inside = f"{folder.strip('/')}/" if folder.strip("/") else ""
        words = f"{kind}s/" if kind != "model" else ""
        at = f"@{revision}" if revision else ""
        self.url = f"hf://{words}{repository}{at}" + (f"/{folder}" if folder else "")
        self.private = False
        self._commit: str | None = None
        if network_is_off():
            raise offline(self.url)

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    @property
    def _of(self) -> dict[str, Any]:
        return {"repo_id": self.repository, "repo_type": self.kind}

    def listing(self) -> dict[str, Listed]:
        with self._explained("list"):
            self._commit = self._api.repo_info(**self._of, revision=self.revision).sha
            entries = list(
                self._api.list_repo_tree(**self._of, revision=self._commit, recursive=True)
            )
        found = {}
        for entry in entries:
            if hasattr(entry, "blob_id") and entry.path.startswith(self._inside):
                stated = Listed(entry.size, git_sha1=entry.blob_id)
                if entry.lfs:
                    stated = Listed(entry.lfs.size, sha256=entry.lfs.sha256)
                found[entry.path.removeprefix(self._inside)] = stated
        return found

    def prepare(self) -> None:
        """Create the repository, unless it is there; PpapError if nobody is logged in."""
        with self._explained("write to", PpapError):
            self._api.whoami()
            private = self.private or None
            self._api.create_repo(**self._of, private=private, exist_ok=True)

    def put(self, files: Mapping[str, Path], message: str) -> None:
        from huggingface_hub import CommitOperationAdd

        with self._explained("write to", PpapError):
            additions = [
                CommitOperationAdd(f"{self._inside}{name}", path) for name, path in files.items()
            ]
            self._api.create_commit(
                **self._of,
                operations=additions,
                commit_message=message,
                revision=self.revision,
                parent_commit=self._commit,  # refused if somebody else wrote meanwhile
            )

    def read(self, name: str) -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            self._download(name, path)
            return path.read_bytes()

    def _download(self, name: str, path: Path) -> None:
        from huggingface_hub import hf_hub_download

        folder = path.with_name(f"{path.name}.hub")
        try:
            with self._explained("read"):
                revision = self._commit or self.revision
                file = f"{self._inside}{name}"
                got = hf_hub_download(
                    **self._of, filename=file, revision=revision, local_dir=folder
                )
                Path(got).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _explained(self, action: str, error: type[PpapError] = AssetError) -> Iterator[None]:
        from huggingface_hub import errors

        where, login = f"cannot {action} {self.url}: ", "`hf auth login`, or set HF_TOKEN"
        try:
            with _quiet():
                yield
        except PpapError:
            raise
        except errors.LocalTokenNotFoundError as fault:
            raise error(f"{where}there is no token of the Hub here", hint=login) from fault
        except errors.GatedRepoError as fault:
            hint = f"ask for access on its page, then {login}"
            raise error(f"{where}its owner gives access one by one", hint=hint) from fault
        except errors.RepositoryNotFoundError as fault:
            hint = f"check the name; for a private one, {login}"
            raise error(
                f"{where}there is no such repository, or it is private", hint=hint
            ) from fault
        except errors.RevisionNotFoundError as fault:
            raise error(f"{where}it has no revision {self.revision!r}", hint="check it") from fault
        except errors.RemoteEntryNotFoundError as fault:
            raise error(f"{where}it has no such file", hint="check the address") from fault
        except errors.HFValidationError as fault:
            hint = "a repository is OWNER/NAME"
            raise UsageError(
                f"{self.repository!r} is no name of a repository", hint=hint
            ) from fault
        except errors.HfHubHTTPError as fault:
            raise self._refused(where, fault, error, login) from fault
        except Exception as fault:  # the network, the disk
            if cause := _cause(fault, errors.HfHubHTTPError):  # of an upload in a thread
                raise self._refused(where, cause, error, login) from fault
            reason = one_line(fault.__cause__ or fault)
            hint = "check the connection, and type it again"
            if "Connect" in type(fault).__name__ or "Timeout" in type(fault).__name__:
                reason = "the Hub cannot be reached"
            raise error(f"{where}{reason}", hint=hint) from fault

    def _refused(self, where: str, fault: Any, error: type[PpapError], login: str) -> PpapError:
        """The error of a request that the Hub answered with a status."""
        status = getattr(fault.response, "status_code", None)
        said = getattr(fault, "server_message", None) or one_line(fault)
        reason, hint = f"the Hub answers {status}: {said}", "type it again later"
        if status == 401:
            reason, hint = "the Hub does not accept the token", login
        elif status == 403:
            reason = f"the token has no right to do so: {said}"
            hint = f"take a token that may write to {self.repository.partition('/')[0]!r}"
        elif status in (409, 412):
            reason, hint = f"somebody wrote to it meanwhile: {said}", "type it again"
        return error(where + reason, hint=hint)


def _cause(error: BaseException, kind: type[BaseException]) -> Any:
    """The first of an error's causes of a type; None if there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The Hub's library logs nothing of its own, and draws no bars where nobody sees them; its
    warnings are about its own code, or about optional fields of a card.
    """
    import logging
    import sys
    import warnings

    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # re-exported
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as hub_logging

    with contextlib.ExitStack() as stack:
        stack.callback(hub_logging.set_verbosity, hub_logging.get_verbosity())
        hub_logging.set_verbosity(logging.CRITICAL)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not sys.stderr.isatty() and not are_progress_bars_disabled():
            disable_progress_bars()
            stack.callback(enable_progress_bars)
        yield
