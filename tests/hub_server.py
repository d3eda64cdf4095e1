"""A stand-in for the Hugging Face hub on this machine: what huggingface_hub asks of it, over HTTP.

    with serving() as hub:
        commit = hub.publish("me/model", {"config.json": b"{}"})

Models have branches and commits, files are small ones or LFS', tokens may read or write.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
import urllib.parse

WRITER, READER = "hf_writer", "hf_reader"
LFS_FROM = 1 << 16  # bytes: larger files go to LFS


@dataclasses.dataclass
class Model:
    private: bool = False
    gated: bool = False
    refs: dict = dataclasses.field(default_factory=dict)  # {"main": commit}
    commits: dict = dataclasses.field(default_factory=dict)  # {commit: {path: bytes}}

    def add(self, files, branch="main"):
        content = repr(sorted((name, hashlib.sha1(x).hexdigest()) for name, x in files.items()))
        commit = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit


class Hub(http.server.ThreadingHTTPServer):
    """`broken` is a part of a path whose requests are answered with an error of the server."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Model] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.broken = ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, repo, files, **how):
        """A commit of a model with these files (a directory's, or bytes by name)."""
        if not isinstance(files, dict):
            files = {f.name: f.read_bytes() for f in files.iterdir() if f.is_file()}
        return self.models.setdefault(repo, Model(**how)).add(files)


@contextlib.contextmanager
def serving():
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Refused(Exception):
    """A status, and what the hub calls it."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *of):
        pass

    def do_GET(self):
        self.dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    def dispatch(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.server.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.server.broken and self.server.broken in path:
                raise _Refused(500, "")
            self.answer(path.strip("/").split("/"))
        except _Refused as refused:
            self.reply({"error": "refused"}, *refused.args)

    def reply(self, value, status=200, code="", headers=()):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, text)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def answer(self, parts):
        if self.token not in ("", WRITER, READER):
            raise _Refused(401, "")
        match parts:
            case ["api", "whoami-v2"]:
                if not self.token:
                    raise _Refused(401, "")
                self.reply({"type": "user", "name": "me", "orgs": []})
            case ["api", "validate-yaml"]:
                self.reply({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                self.create(json.loads(self.body))
            case ["api", "models", owner, name]:
                self.info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self.info(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", revision, *_]:
                self.tree(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "preupload", _]:
                self.preupload(f"{owner}/{name}")
            case ["api", "models", owner, name, "commit", branch]:
                self.commit(f"{owner}/{name}", branch)
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self.batch()
            case ["lfs", oid]:
                assert hashlib.sha256(self.body).hexdigest() == oid
                self.server.large[oid] = self.body
                self.reply({})
            case [owner, name, "resolve", revision, *path]:
                self.file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise _Refused(404, "")

    def model(self, repo):
        model = self.server.models.get(repo)
        if model is None or (model.private and not self.token):
            # The hub does not tell strangers which of the two it is.
            raise _Refused(404 if self.token else 401, "RepoNotFound")
        if model.gated:
            raise _Refused(403, "GatedRepo")
        return model

    def files(self, repo, revision):
        model = self.model(repo)
        commit = model.refs.get(revision, revision)
        if commit not in model.commits:
            raise _Refused(404, "RevisionNotFound")
        return commit, model.commits[commit]

    def info(self, repo, revision):
        commit, files = self.files(repo, revision)
        siblings = [{"rfilename": name} for name in files]
        private = self.server.models[repo].private
        self.reply({"id": repo, "sha": commit, "private": private, "siblings": siblings})

    def tree(self, repo, revision):
        rows = []
        for name, content in self.files(repo, revision)[1].items():
            row = {"type": "file", "path": name, "size": len(content), "oid": _sha1(content)}
            if len(content) >= LFS_FROM:
                row["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
            rows.append(row)
        self.reply(rows)

    def file(self, repo, revision, path):
        commit, files = self.files(repo, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound")
        content = files[path]
        tag = _sha256(content) if len(content) >= LFS_FROM else _sha1(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit}
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(content))
        self.reply(content, headers=headers)

    # ------------------------------------------------------------------------------- writing

    def may_write(self):
        if self.token != WRITER:
            raise _Refused(403, "")

    def create(self, asked):
        self.may_write()
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = repo in self.server.models
        if not there:
            # The first is what older versions of huggingface_hub say.
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.models[repo] = Model(private=bool(private))
            self.server.models[repo].add({})
        answer = {"url": f"{self.server.url}/{repo}", "name": repo}
        self.reply(answer, 409 if there else 200)

    def preupload(self, repo):
        self.may_write()
        self.model(repo)
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.reply({"files": rows})

    def batch(self):
        self.may_write()
        rows = [
            {**row, "actions": {"upload": {"href": f"{self.server.url}/lfs/{row['oid']}"}}}
            for row in json.loads(self.body)["objects"]
        ]
        self.reply({"transfer": "basic", "objects": rows})

    def commit(self, repo, branch):
        self.may_write()
        model = self.model(repo)
        files = dict(model.commits[model.refs[branch]])
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            match row["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = model.add(files, branch)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self.reply({"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})


def _sha1(content):
    return hashlib.sha1(content).hexdigest()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
