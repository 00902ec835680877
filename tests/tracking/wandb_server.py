"""A small W&B server on loopback for the real wandb SDK and CLI: runs, file streams and artifacts, kept in memory.

Tried with wandb 0.31.0 (its Python API, its `wandb` command and its `wandb-core` service). Not a copy of W&B: it
answers the GraphQL operations and file routes that those clients ask for here, each with at least the fields that
they read; `unknown` lists any other operation that came in. As the real one does, it keeps one artifact version for
one content (digest), moves aliases, hands out upload addresses only for files that it lacks, checks each upload
against its MD5, and shows nothing before the commit.

    with WandbServer() as server:
        os.environ.update(server.environment)
        ...
        assert server.bytes_uploaded["artifact"] == 0
        server.fault(500)                        # every request from now on, until server.heal()
        server.fault("hang", after=20)           # dies in the middle: the first 20 requests still pass
        server.fault(403, only="CreateArtifact") # operations and paths that match this pattern
"""

import base64
import gzip
import hashlib
import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeAlias
from urllib.parse import unquote, urlsplit

Json: TypeAlias = dict[str, Any]

ENTITY = "team"
KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as the client demands
_WHEN = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


@dataclass
class Run:
    """One run as the server has seen it; `history` holds the logged rows."""

    project: str
    name: str
    attributes: Json = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    summary: str = "{}"
    state: str = "running"
    files: dict[str, bytes] = field(default_factory=dict)
    inputs: list["Version"] = field(default_factory=list)
    outputs: list["Version"] = field(default_factory=list)

    @property
    def config(self) -> Json:
        """What the run was configured with, without the client's own entries."""
        config = json.loads(self.attributes.get("config") or "{}")
        return {key: item["value"] for key, item in config.items() if not key.startswith("_")}

    @property
    def rows(self) -> list[Json]:
        return [json.loads(line) for line in self.history]


@dataclass
class Version:
    """One version of an artifact collection; `entries` is its manifest's contents once the manifest is here."""

    id: str
    project: str
    type: str
    collection: str
    digest: str
    run: Run
    metadata: str = "{}"
    description: str | None = None
    state: str = "PENDING"
    index: int | None = None
    aliases: list[str] = field(default_factory=list)
    wanted_aliases: list[str] = field(default_factory=list)
    manifest: Json = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.collection}:v{self.index}"

    @property
    def entries(self) -> Json:
        return self.manifest.get("contents", {})


class WandbServer:
    """The server, with what it has seen. A context manager; listens on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run] = {}
        self.versions: list[Version] = []
        self.blobs: dict[str, bytes] = {}  # hex MD5 -> content
        self.client_ids: dict[str, str] = {}
        self.requests: list[str] = []  # operation names and paths, in order
        self.unknown: list[str] = []
        self.bytes_uploaded: Counter[str] = Counter()  # "artifact", "manifest", "run" (files and streams)
        self._fault: tuple[int | str, int, re.Pattern[str]] | None = None
        self._released = threading.Event()
        self._lock = threading.RLock()
        self._port = 0
        self._http: ThreadingHTTPServer | None = None

    # Life

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listen(self) -> None:
        """Listen, at the same port again after `close()`."""
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        self._released.set()
        if self._http:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point the SDK and CLI here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY, "WANDB_PROJECT": "stories"}

    def fault(self, kind: int | str, *, after: int = 0, only: str = "") -> None:
        """Answer with the HTTP status `kind`, or "hang", or "drop" (close the connection) until `heal()`.

        `after`: how many more matching requests pass first. `only`: a pattern of operation names and paths.
        """
        self._released.clear()
        self._fault = (kind, after, re.compile(only))

    def heal(self) -> None:
        """End the fault; what hangs is let go."""
        self._fault = None
        self._released.set()

    def forget(self) -> None:
        """As new: no runs, no artifacts, no counts, no fault."""
        self.heal()
        for seen in (self.runs, self.versions, self.blobs, self.client_ids, self.requests, self.unknown):
            seen.clear()
        self.bytes_uploaded.clear()

    def strike(self, route: str) -> int | str | None:
        """The fault that this request meets, if any. What is closed answers no more on connections it had."""
        with self._lock:
            if self._http is None:
                return "drop"
            if not self._fault or not self._fault[2].search(route):
                return None
            kind, after, only = self._fault
            if after > 0:
                self._fault = (kind, after - 1, only)
                return None
            return kind

    # What tests ask

    def version(self, name: str, project: str = "stories") -> Version:
        """The committed version called `collection:alias`, e.g. `clean:latest` or `model:v0`. Raises KeyError."""
        found = self._find(project, name)
        if found is None:
            raise KeyError(name)
        return found

    def committed(self, collection: str) -> list[Version]:
        return [v for v in self.versions if v.collection == collection and v.state == "COMMITTED"]

    def jobs(self) -> dict[str, Run]:
        """The latest run of each job type."""
        return {run.attributes.get("jobType") or "": run for run in self.runs.values()}

    # GraphQL: one method an operation, named as the operation is

    def answer(self, body: Json) -> Json:
        query = re.sub(r"^\s*#.*$", "", body["query"], flags=re.MULTILINE)
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = body.get("operationName") or (found[1] if found else "")
        method: Callable[[Json], Json] | None = getattr(self, f"_do_{name}", None)
        if method is None:
            self.unknown.append(f"{name}: {query[:2000]}")
            return {"errors": [{"message": f"unknown operation {name}"}]}
        with self._lock:
            variables = body.get("variables") or {}
            return {"data": method(variables | (variables.get("input") or {}))}

    def _do_Viewer(self, _: Json) -> Json:
        return {"viewer": _user()}

    _do_GetViewer = _do_GetDefaultEntity = _do_Viewer

    def _do_ServerFeaturesQuery(self, _: Json) -> Json:
        return {"serverInfo": {"features": []}}

    def _do_OrganizationCoreWeaveOrganizationID(self, _: Json) -> Json:
        return {"entity": {"organization": None}}

    def _do_XXHashDigestsEnabled(self, _: Json) -> Json:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _do_FetchOrgEntityFromEntity(self, _: Json) -> Json:
        return {"entity": {"organization": None, "user": None}}

    def _do_RunResumeStatus(self, v: Json) -> Json:
        run = self.runs.get((v["project"], v["name"]))
        bucket = run and self._run(run) | {
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.events),
            "historyTail": json.dumps(run.history[-1:]),
            "eventsTail": json.dumps(run.events[-1:]),
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": self._project(v["project"]) | {"bucket": bucket}}

    def _do_UpsertBucket(self, v: Json) -> Json:
        name = v.get("name") or v.get("id") or uuid.uuid4().hex[:8]
        run = next((run for (_, key), run in self.runs.items() if key == name), None)
        inserted = run is None
        if run is None:
            run = self.runs[v["project"], name] = Run(v["project"], name)
        run.attributes |= {key: value for key, value in v.items() if value is not None}
        run.summary = v.get("summaryMetrics") or run.summary
        run.state = v.get("state") or ("running" if inserted else run.state)
        return {"upsertBucket": {"bucket": self._run(run), "inserted": inserted}}

    def _do_Run(self, v: Json) -> Json:
        run = self.runs.get((v["project"], v["name"]))
        return {"project": self._project(v["project"]) | {"run": run and self._run(run)}}

    _do_RunState = _do_Run

    def _do_RunStopStatus(self, _: Json) -> Json:
        return {"project": {"run": {"stopped": False}}}

    def _do_RunInputArtifacts(self, v: Json) -> Json:
        return self._artifacts_of(v, self.runs[v["project"], v["run"]].inputs)

    def _do_RunOutputArtifacts(self, v: Json) -> Json:
        return self._artifacts_of(v, self.runs[v["project"], v["run"]].outputs)

    def _do_CreateRunFiles(self, v: Json) -> Json:
        base = f"{self.url}/upload/run/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def _do_ProjectArtifactType(self, v: Json) -> Json:
        name = v.get("type") or v["name"]
        return {"project": self._project(v["project"]) | {"artifactType": _artifact_type(name)}}

    def _do_ArtifactType(self, v: Json) -> Json:
        version = self._find(v["project"], v["name"])
        return {"project": {"artifact": version and {"artifactType": {"name": version.type}}}}

    def _do_ProjectArtifactTypes(self, v: Json) -> Json:
        names = dict.fromkeys(version.type for version in self.versions if version.project == v["project"])
        return {"project": self._project(v["project"]) | {"artifactTypes": _page(map(_artifact_type, names))}}

    def _do_ArtifactTypeArtifactCollections(self, v: Json) -> Json:
        names = dict.fromkeys(x.collection for x in self.versions if (x.project, x.type) == (v["project"], v["type"]))
        page = _page(self._collection(v["project"], name, v["type"]) for name in names)
        return {"project": {"artifactType": {"artifactCollections": page}}}

    def _do_ProjectArtifactCollection(self, v: Json) -> Json:
        collection = self._collection(v["project"], v["name"], v["type"]) if self._has(v, "name") else None
        return {"project": {"artifactType": {"artifactCollection": collection}}}

    def _do_ProjectArtifacts(self, v: Json) -> Json:
        found = [x for x in self.committed(v["collection"]) if x.project == v["project"]][::-1]
        page = _page(map(self._artifact, found))
        for edge, version in zip(page["edges"], found, strict=True):
            edge["version"] = f"v{version.index}"
        collection = self._collection(v["project"], v["collection"], v["type"]) | {"artifacts": page}
        return {"project": {"artifactType": {"artifactCollection": collection if found else None}}}

    def _do_FetchArtifactDigestAlgorithm(self, _: Json) -> Json:
        return {"project": {"artifactType": None}}

    def _do_ArtifactMembershipByName(self, v: Json) -> Json:
        version = self._find(v["project"], v["name"])
        return {"project": {"artifactCollectionMembership": version and self._membership(version)}}

    def _do_ArtifactByID(self, v: Json) -> Json:
        return {"artifact": self._artifact(self._by_id(v["id"]))}

    def _do_ArtifactManifest(self, v: Json) -> Json:
        version = self._by_id(v.get("id") or v["artifact_id"])
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/manifest/{version.id}"}}}}

    _do_FetchArtifactManifest = _do_ArtifactManifest

    def _do_GetArtifactMembershipFileUrls(self, v: Json) -> Json:
        version = self._find(v["project"], f"{v['collection']}:{v['alias']}")
        page = _page(map(self._file, version.entries, version.entries.values())) if version else _page([])
        membership = {"artifactMembership": {"files": page}}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence"} | membership}}

    _do_ArtifactMembershipFiles = _do_GetArtifactMembershipFileUrls

    def _do_ArtifactUsedBy(self, v: Json) -> Json:
        users = [run for run in self.runs.values() if any(version.id == v["id"] for version in run.inputs)]
        return {"artifact": {"usedBy": _page(map(self._run, users))}}

    def _do_ArtifactCreatedBy(self, v: Json) -> Json:
        return {"artifact": {"createdBy": self._run(self._by_id(v["id"]).run)}}

    def _do_CreateArtifact(self, v: Json) -> Json:
        run = self.runs[v["projectName"], v["runName"]]
        aliases = [alias["alias"] for alias in v.get("aliases") or []]
        same = [
            x
            for x in self.committed(v["artifactCollectionName"])
            if (x.project, x.digest) == (run.project, v["digest"])
        ]
        if same:
            version = same[0]
            self._set_aliases(version, aliases)
        else:
            version = Version(_id(), run.project, v["artifactTypeName"], v["artifactCollectionName"], v["digest"], run)
            version.metadata, version.description = v.get("metadata") or "{}", v.get("description")
            version.wanted_aliases = aliases
            self.versions.append(version)
        if version not in run.outputs:
            run.outputs.append(version)
        if v.get("clientID"):
            self.client_ids[v["clientID"]] = version.id
        before = self.committed(version.collection)
        latest = {"latestArtifact": {"id": before[-1].id} if before else None}
        return {"createArtifact": {"artifact": {"id": version.id, "state": version.state, "artifactSequence": latest}}}

    def _do_CreateArtifactManifest(self, v: Json) -> Json:
        return {"createArtifactManifest": self._manifest_upload(v["artifactID"])}

    def _do_UpdateArtifactManifest(self, v: Json) -> Json:
        return {"updateArtifactManifest": self._manifest_upload(v["artifactManifestID"])}

    def _do_CreateArtifactFiles(self, v: Json) -> Json:
        nodes = []
        for file in v["artifactFiles"]:
            digest = base64.b64decode(file["md5"]).hex()
            url = None if digest in self.blobs else f"{self.url}/upload/artifact/{digest}"
            node = {"storagePath": digest, "uploadUrl": url, "uploadHeaders": [f"Content-MD5:{file['md5']}"]}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            nodes.append(node | {"id": digest, "name": file["name"], "displayName": file["name"]})
        return {"createArtifactFiles": {"files": _page(nodes)}}

    def _do_CommitArtifact(self, v: Json) -> Json:
        version = self._by_id(v["artifactID"])
        missing = [path for path, e in version.entries.items() if base64.b64decode(e["digest"]).hex() not in self.blobs]
        if missing or not version.manifest:
            raise ValueError(f"commit of {version.collection} without {missing or 'a manifest'}")
        if version.state != "COMMITTED":
            version.index = len(self.committed(version.collection))
            version.state = "COMMITTED"
        self._set_aliases(version, version.wanted_aliases)
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _do_ClientIDMapping(self, v: Json) -> Json:
        found = self.client_ids.get(v["clientID"])
        return {"clientIDMapping": {"serverID": found} if found else None}

    def _do_UseArtifact(self, v: Json) -> Json:
        version = self._by_id(v["artifactID"])
        run = self.runs[v["projectName"], v["runName"]]
        if version not in run.inputs:
            run.inputs.append(version)
        return {"useArtifact": {"artifact": self._artifact(version)}}

    def _do_UpdateArtifact(self, v: Json) -> Json:
        version = self._by_id(v["artifactID"])
        version.metadata = v.get("metadata") or version.metadata
        version.description = v.get("description") or version.description
        if v.get("aliases") is not None:
            version.aliases = []
            self._set_aliases(version, [alias["alias"] for alias in v["aliases"]])
        artifact = {"artifact": self._artifact(version)}
        return {"result": artifact, "updateArtifact": artifact}

    def _do_AddAliases(self, v: Json) -> Json:
        self._set_aliases(self._by_id(v["artifactID"]), [alias["alias"] for alias in v["aliases"]])
        return {"result": {"success": True}}

    def _do_DeleteAliases(self, v: Json) -> Json:
        version = self._by_id(v["artifactID"])
        gone = {alias["alias"] for alias in v["aliases"]}
        version.aliases = [alias for alias in version.aliases if alias not in gone]
        return {"result": {"success": True}}

    # The fields that clients read

    def _project(self, name: str) -> Json:
        return {
            "id": name,
            "internalId": "1",
            "name": name,
            "entityName": ENTITY,
            "entity": {"id": "1", "name": ENTITY},
        }

    def _run(self, run: Run) -> Json:
        a = run.attributes
        given = {key: a.get(key) for key in ("displayName", "config", "jobType", "commit", "notes", "description")}
        return given | {
            "__typename": "Run", "id": run.name, "name": run.name, "group": a.get("groupName"), "state": run.state,
            "project": self._project(run.project), "projectId": "1", "tags": a.get("tags") or [], "sweepName": None,
            "summaryMetrics": run.summary, "systemMetrics": "{}", "historyLineCount": len(run.history),
            "historyKeys": None, "readOnly": False, "createdAt": _WHEN, "heartbeatAt": _WHEN, "user": _user(),
        }  # fmt: skip

    def _collection(self, project: str, name: str, kind: str = "dataset") -> Json:
        node = {"__typename": "ArtifactSequence", "id": name, "name": name, "description": None, "createdAt": _WHEN}
        node |= {"updatedAt": _WHEN, "project": self._project(project), "type": {"name": kind}, "tags": _page([])}
        return node

    def _artifact(self, version: Version) -> Json:
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias}
            | {"artifactCollection": self._collection(version.project, version.collection)}
            for alias in version.aliases
        ]
        return {
            "__typename": "Artifact", "id": version.id, "versionIndex": version.index, "state": version.state,
            "artifactSequence": self._collection(version.project, version.collection, version.type),
            "artifactType": {"name": version.type}, "description": version.description, "metadata": version.metadata,
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "digest": version.digest,
            "digestAlgorithm": None, "commitHash": version.id, "createdAt": _WHEN, "updatedAt": _WHEN,
            "size": sum(entry.get("size", 0) for entry in version.entries.values()),
            "fileCount": len(version.entries), "aliases": aliases,
        }  # fmt: skip

    def _membership(self, version: Version) -> Json:
        artifact = self._artifact(version)
        member = {"__typename": "ArtifactCollectionMembership", "id": version.id, "versionIndex": version.index}
        member |= {"createdAt": _WHEN, "aliases": artifact["aliases"], "artifact": artifact}
        return member | {"artifactCollection": self._collection(version.project, version.collection, version.type)}

    def _file(self, path: str, entry: Json) -> Json:
        digest = base64.b64decode(entry["digest"]).hex()
        url = f"{self.url}/blob/{digest}"
        file = {"__typename": "File", "id": digest, "name": path, "url": url, "directUrl": url, "mimetype": None}
        file |= {"sizeBytes": entry.get("size", 0), "storagePath": digest, "updatedAt": _WHEN}
        return file | {"digest": entry["digest"], "md5": entry["digest"]}

    def _artifacts_of(self, v: Json, versions: list[Version]) -> Json:
        shown = [version for version in versions if version.state == "COMMITTED"]
        return {"project": {"run": {"artifacts": _page(map(self._artifact, shown))}}}

    def _manifest_upload(self, artifact: str) -> Json:
        file = {"id": artifact, "uploadUrl": f"{self.url}/upload/manifest/{artifact}", "uploadHeaders": []}
        return {"artifactManifest": {"id": artifact, "file": file}}

    def _by_id(self, key: str) -> Version:
        key = self.client_ids.get(key, key)
        return next(version for version in self.versions if version.id == key)

    def _has(self, v: Json, key: str) -> bool:
        return any((x.project, x.collection) == (v["project"], v[key]) for x in self.versions)

    def _find(self, project: str, name: str) -> Version | None:
        collection, _, alias = name.partition(":")
        for version in reversed(self.committed(collection)):
            if version.project == project and (alias or "latest") in (*version.aliases, f"v{version.index}"):
                return version
        return None

    def _set_aliases(self, version: Version, aliases: list[str]) -> None:
        for other in self.versions:
            if (other.project, other.collection) == (version.project, version.collection) and other is not version:
                other.aliases = [alias for alias in other.aliases if alias not in aliases]
        version.aliases += [alias for alias in aliases if alias not in version.aliases]

    # Files

    def upload(self, path: str, body: bytes) -> int:
        """Take the body of a PUT; returns the HTTP status."""
        _, _, kind, *rest = path.split("/")
        with self._lock:
            self.bytes_uploaded[kind] += len(body)
            if kind == "artifact":
                if hashlib.md5(body, usedforsecurity=False).hexdigest() != rest[0]:
                    return 400
                self.blobs[rest[0]] = body
            elif kind == "manifest":
                self._by_id(rest[0]).manifest = json.loads(body)
            else:
                self.runs[rest[0], rest[1]].files["/".join(rest[2:])] = body
        return 200

    def download(self, path: str) -> bytes | None:
        """The body of a GET, or None where there is no such thing."""
        _, kind, *rest = path.split("/")
        if kind == "blob":
            return self.blobs.get(rest[0])
        if kind == "manifest":
            return json.dumps(self._by_id(rest[0]).manifest).encode()
        return None

    def stream(self, path: str, body: Json) -> None:
        """Take a file stream's chunk: history, events and summary by line offset, and the run's end."""
        _, _, _, project, name, _ = path.split("/")
        run = self.runs[project, name]
        for file, chunk in (body.get("files") or {}).items():
            lines, offset = chunk["content"], chunk["offset"]
            if file == "wandb-history.jsonl":
                run.history[offset:] = lines
            elif file == "wandb-events.jsonl":
                run.events[offset:] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        if body.get("complete"):
            run.state = "finished" if body.get("exitcode") == 0 else "failed"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def _serve(self) -> None:
        state, path = self.server_state, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        route = path
        if path == "/graphql":
            query = json.loads(body)
            name = re.search(r"\b(?:query|mutation)\s+(\w+)", query["query"])
            route = query.get("operationName") or (name[1] if name else path)
        with state._lock:
            state.requests.append(route)
        fault = state.strike(route)
        if fault == "hang":
            state._released.wait(120)
        if isinstance(fault, str):
            self.close_connection = True
        elif fault is not None:
            self._reply(fault, b'{"errors": [{"message": "told to fail"}]}')
        elif path in ("/graphql",) or path.startswith("/files/"):
            if not self._authorised():
                self._reply(401, b'{"errors": [{"message": "user is not logged in"}]}')
            elif path == "/graphql":
                self._reply(200, json.dumps(state.answer(query)).encode())
            else:
                with state._lock:
                    state.bytes_uploaded["run"] += len(body)
                    state.stream(path, json.loads(body))
                self._reply(200, b"{}")
        elif self.command == "PUT":
            self._reply(state.upload(path, body), b"")
        else:
            found = state.download(path)
            self._reply(404 if found is None else 200, found or b"")

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _authorised(self) -> bool:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return scheme == "Basic" and base64.b64decode(token).decode() == f"api:{KEY}"

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _id() -> str:
    return base64.b64encode(f"Artifact:{uuid.uuid4().hex}".encode()).decode()


def _user() -> Json:
    user = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
    return user | {"flags": "{}", "deletedAt": None, "teams": _page([]), "apiKeys": _page([])}


def _page(nodes: Any) -> Json:
    edges = [{"node": node, "cursor": ""} for node in nodes]
    end = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"totalCount": len(edges), "pageInfo": end, "edges": edges}


def _artifact_type(name: str) -> Json:
    return {"__typename": "ArtifactType", "id": name, "name": name, "description": None, "createdAt": _WHEN}
