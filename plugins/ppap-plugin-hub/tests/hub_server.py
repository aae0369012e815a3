"""A stand-in for the Hugging Face Hub that speaks its HTTP, as far as `huggingface_hub` asks: names
and tokens, repositories, the tree of a commit, uploads by Git LFS and commits, and downloads.

Every request is answered from what earlier requests left. Faults are given by the tests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import yaml

READ, WRITE = "hf_read", "hf_write"
USER = "ada"
LARGE = (".safetensors", ".tar", ".png", ".jpg")


@attrs.define
class Repository:
    """Commits, each a map of paths to contents, oldest first; the last is "main"."""

    private: bool = False
    gated: bool = False
    commits: list[dict[str, bytes]] = attrs.field(factory=lambda: [{}])
    messages: list[str] = attrs.field(factory=lambda: ["initial commit"])

    def sha(self, number: int = -1) -> str:
        number %= len(self.commits)
        return hashlib.sha1(f"{number} {self.messages[number]}".encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        names = {self.sha(i): i for i in range(len(self.commits))} | {"main": -1}
        return self.commits[names[revision]] if revision in names else None


@attrs.define
class Hub:
    """The state of the server.

    Attributes:
        address: Without a slash at the end.
        storage: Of large files: another host, as theirs, to which clients send no token.
        repositories: By "models/owner/name" and "datasets/owner/name".
        objects: Contents of Git LFS by SHA-256.
        asked: "METHOD path" of every request.
        refused: A pattern of such a request to the status, headers and body of its answer.
        xet: The folder of a Xet store, to which `hf_xet` writes by itself; None without one.
        xet_hashes: Xet hash by SHA-256 of each file that may be uploaded to it.
        changed: What downloads of large files are passed through.
        meanwhile: Called before a commit is taken.
    """

    address: str = ""
    storage: str = ""
    repositories: dict[str, Repository] = attrs.field(factory=dict)
    objects: dict[str, bytes] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)
    refused: dict[str, tuple[int, dict[str, str], Any]] = attrs.field(factory=dict)
    xet: str | None = None
    xet_hashes: dict[str, str] = attrs.field(factory=dict)
    changed: Any = None
    meanwhile: Any = None

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        return self.repositories[f"{kind}/{name}"].commits[-1]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A context in which the server runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked = f"{self.command} {path}"
            hub.asked.append(asked)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            for pattern, (status, headers, answer) in hub.refused.items():
                if re.search(pattern, asked):
                    self.answer(answer, status, headers)
                    return
            try:
                for pattern, action in ROUTES:
                    if match := re.fullmatch(pattern, asked):
                        action(self, *match.groups(), body=body)
                        return
                raise _Refusal(404, "", f"no route for {asked}")
            except _Refusal as refusal:
                headers = {k: v for k, v in refusal.headers.items() if v}
                said = {"error": refusal.headers["X-Error-Message"]}
                self.answer(said, refusal.status, headers)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def answer(
            self, body: Any, status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers = {"Content-Length": str(len(content)), **(headers or {})}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

        # Names and tokens

        @property
        def token(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def writing(self, owner: str) -> None:
            if self.token not in (READ, WRITE):
                raise _Refusal(401, "", "Invalid username or password.")
            if self.token != WRITE or owner != USER:
                said = f"You don't have the rights to write to the namespace {owner!r}"
                raise _Refusal(403, "", said)

        def whoami(self, body: bytes) -> None:
            if self.token not in (READ, WRITE):
                raise _Refusal(401, "", "Invalid credentials in Authorization header")
            self.answer({"type": "user", "name": USER, "orgs": []})

        # Repositories

        def repository(self, kind: str, name: str) -> Repository:
            found = hub.repositories.get(f"{kind}/{name}")
            known = self.token in (READ, WRITE)
            if found is None or (found.private and not known):
                raise _Refusal(404 if known else 401, "RepoNotFound", "Repository not found")
            return found

        def commit_of(self, kind: str, name: str, revision: str) -> dict[str, bytes]:
            found = self.repository(kind, name).at(revision)
            if found is None:
                raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return found

        def create(self, body: bytes) -> None:
            given = json.loads(body)
            owner = given["organization"] or USER
            self.writing(owner)
            kind = f"{given.get('type') or 'model'}s"
            name = f"{owner}/{given['name']}"
            url = {"url": f"{hub.address}/{name}", "id": name}
            if f"{kind}/{name}" in hub.repositories:
                self.answer({**url, "error": "You already created this repo"}, 409)
                return
            private = given.get("private") or given.get("visibility") == "private"
            hub.repositories[f"{kind}/{name}"] = Repository(private=bool(private))
            self.answer(url)

        def info(self, kind: str, name: str, revision: str | None, body: bytes) -> None:
            files = self.commit_of(kind, name, revision or "main")
            found = self.repository(kind, name)
            number = next(i for i, commit in enumerate(found.commits) if commit is files)
            said = {"_id": "0" * 24, "id": name, "modelId": name, "private": found.private}
            siblings = [{"rfilename": path} for path in files]
            more = {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
            self.answer({**said, **more, "sha": found.sha(number)})

        def tree(self, kind: str, name: str, revision: str, body: bytes) -> None:
            entries = []
            for path, content in self.commit_of(kind, name, revision).items():
                entry = {"type": "file", "path": path, "size": len(content)}
                if path.endswith(LARGE):
                    large = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
                    entry |= {"oid": "0" * 40, "lfs": large}
                else:
                    entry |= {"oid": git_sha1(content)}
                entries.append(entry)
            self.answer(entries)

        # Writing

        def validate(self, body: bytes) -> None:
            text = json.loads(body)["content"]
            front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
            found = yaml.safe_load(front[1]) if front else None
            errors = [] if isinstance(found, dict) else [{"message": "no metadata"}]
            self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

        def preupload(self, kind: str, name: str, revision: str, body: bytes) -> None:
            self.writing(name.partition("/")[0])
            files, answers = self.commit_of(kind, name, revision), []
            for file in json.loads(body)["files"]:
                path = file["path"]
                large = path.endswith(LARGE)
                answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
                known = git_sha1(files[path]) if path in files and not large else None
                answers.append({**answer, "shouldIgnore": False, "oid": known})
            self.answer({"files": answers})

        def batch(self, kind: str, name: str, body: bytes) -> None:
            self.writing(name.partition("/")[0])
            given, objects = json.loads(body), []
            assert given["operation"] == "upload" and given["hash_algo"] == "sha256"
            for one in given["objects"]:
                actions = {
                    "upload": {"href": f"{hub.storage}/{one['oid']}", "header": {}},
                    "verify": {"href": f"{hub.address}/verify", "header": {}},
                }
                there = one["oid"] in hub.objects
                objects.append(
                    {**one, "authenticated": True} | ({} if there else {"actions": actions})
                )
            self.answer({"transfer": "basic", "objects": objects})

        def xet_token(self, kind: str, name: str, body: bytes) -> None:
            if not hub.xet:
                raise _Refusal(404, "", "no Xet here")
            until = int(time.time()) + 3600
            said = {"X-Xet-Cas-Url": f"local://{hub.xet}", "X-Xet-Access-Token": "token"}
            answer = {"casUrl": f"local://{hub.xet}", "accessToken": "token", "exp": until}
            self.answer(answer, headers={**said, "X-Xet-Token-Expiration": str(until)})

        def store(self, oid: str, body: bytes) -> None:
            if sha256(body) != oid:
                raise _Refusal(400, "", "the object is not what it was said to be")
            hub.objects[oid] = body
            self.answer({})

        def verify(self, body: bytes) -> None:
            given = json.loads(body)
            if len(hub.objects.get(given["oid"], b"")) != given["size"]:
                raise _Refusal(404, "", "no such object")
            self.answer({})

        def commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
            self.writing(name.partition("/")[0])
            if hub.meanwhile is not None:
                hub.meanwhile()
            found = self.repository(kind, name)
            lines = [json.loads(line) for line in body.splitlines()]
            header = lines[0]["value"]
            if header.get("parentCommit", found.sha()) != found.sha():
                raise _Refusal(
                    412, "", "A commit has happened since. Please refresh and try again."
                )
            files = dict(found.commits[-1])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                else:
                    raise _Refusal(400, "", f"cannot {line['key']}")
            found.commits.append(files)
            found.messages.append(header["summary"])
            url = f"{hub.address}/{name}/commit/{found.sha()}"
            self.answer({"success": True, "commitOid": found.sha(), "commitUrl": url})

        # Reading

        def resolve(self, kind: str, name: str, revision: str, path: str, body: bytes) -> None:
            kind = kind or "models/"
            found = self.repository(kind.rstrip("/"), name)
            if found.gated and self.token not in (READ, WRITE):
                raise _Refusal(401, "GatedRepo", "Access to this model is restricted.")
            files = self.commit_of(kind.rstrip("/"), name, revision)
            if path not in files:
                raise _Refusal(404, "EntryNotFound", "Entry not found")
            number = next(i for i, commit in enumerate(found.commits) if commit is files)
            content, headers = files[path], {"X-Repo-Commit": found.sha(number)}
            if path.endswith(LARGE):
                headers |= {"X-Linked-Size": str(len(content))}
                headers |= {"X-Linked-Etag": f'"{sha256(content)}"'}
                headers |= {"Location": f"{hub.storage}/{sha256(content)}"}
                if hub.xet:
                    route = f"{hub.address}/api/{kind.rstrip('/')}/{name}/xet-read-token/main"
                    headers |= {"X-Xet-Hash": hub.xet_hashes[sha256(content)]}
                    headers |= {"X-Xet-Refresh-Route": route}
                hub.objects.setdefault(sha256(content), content)
                self.answer(b"", 302, headers)
                return
            self.answer(content, headers={**headers, "ETag": f'"{git_sha1(content)}"'})

        def stored(self, oid: str, body: bytes) -> None:
            content = hub.objects[oid]
            self.answer(content if hub.changed is None else hub.changed(content))

    kinds, name = "(models|datasets)", "([^/]+/[^/]+)"
    ROUTES = [
        (r"GET /api/whoami-v2", Handler.whoami),
        (r"POST /api/repos/create", Handler.create),
        (r"POST /api/validate-yaml", Handler.validate),
        (rf"GET /api/{kinds}/{name}(?:/revision/([^/]+))?", Handler.info),
        (rf"GET /api/{kinds}/{name}/tree/([^/]+)", Handler.tree),
        (rf"POST /api/{kinds}/{name}/preupload/([^/]+)", Handler.preupload),
        (rf"POST /api/{kinds}/{name}/commit/([^/]+)", Handler.commit),
        (rf"POST /(datasets/)?{name}\.git/info/lfs/objects/batch", Handler.batch),
        (rf"GET /api/{kinds}/{name}/xet-(?:read|write)-token/[^/]+", Handler.xet_token),
        (r"PUT /storage/([0-9a-f]{64})", Handler.store),
        (r"(?:GET|HEAD) /storage/([0-9a-f]{64})", Handler.stored),
        (r"POST /verify", Handler.verify),
        (rf"(?:GET|HEAD) /(datasets/)?{name}/resolve/([^/]+)/(.+)", Handler.resolve),
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        hub.storage = f"http://localhost:{server.server_address[1]}/storage"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
