"""What is fetched from a hub and what is not, with a small hub on the loopback interface."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

from mmt_cli.checkpoint import hub
from mmt_cli.checkpoint.folder import Folder, weight_files
from mmt_cli.checkpoint.hub import blob_sha256, fetch, fetch_headers, is_hub_id
from mmt_cli.cli.inspect_views import Asked, summary_view
from mmt_cli.errors import ModelError, UsageError
from mmt_cli.inspection.contents import Contents, look
from mmt_cli.inspection.summary import summary_of
from mmt_cli.model.presets import preset
from mmt_cli.model.transformer import MultimodalTransformer

ID = "org/name"
OLD, NEW = "0" * 40, "1" * 40
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
LARGE = (".safetensors", ".bin")  # what a hub keeps outside git, under its sha256, unless it is small
PLAIN = {"config.json": b"{}", "tokenizer.json": b"{1}", "model.safetensors": b"weights"}


def _index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}).encode()


class Hub(ThreadingHTTPServer):
    """As much of a hub as huggingface_hub asks for: the list of a revision's files, and each file's HEAD and GET."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refs = {"main": NEW, "v1": OLD, NEW: NEW, OLD: OLD}
        self.commits: dict[str, dict[str, bytes]] = {NEW: {}, OLD: {}}
        self.refusal: tuple[int, str] | None = None
        self.delay = 0.0
        self.look: Callable[[], bool] = bool  # what it answers while a request is served goes into `seen`
        self.seen: list[bool] = []
        self.knows_ranges = True
        self.tells_sha256 = True
        self.sent = 0  # bytes that went out as ranges
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Authorization

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def etag(self, content: bytes) -> str:
        """Return what a file is kept under."""
        return (hashlib.sha256 if self.tells_sha256 else hashlib.sha1)(content).hexdigest()

    def fetched(self) -> list[str]:
        """Names of the files that were fetched since the last call, in order; forgets all that was asked."""
        names = [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/api/" not in path]
        self.asked.clear()
        return names

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that went away: later tests look at stderr, too."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr, which tests look at."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, served = self.path.partition("?")[0], self.server
        served.asked.append((self.command, path, self.headers.get("Authorization")))
        served.seen.append(served.look())
        time.sleep(served.delay)
        if served.refusal is not None:
            return self._answer(served.refusal[0], b"", **{"X-Error-Code": served.refusal[1]})
        if path.startswith("/store/"):
            commit, name = path.split("/")[2:4]
            return self._stored(served.commits[commit][name])
        api, resolve = f"/api/models/{ID}", f"/{ID}/resolve/"
        if path.startswith(api):
            commit = served.refs.get(path.removeprefix(api).removeprefix("/revision/") or "main", "")
            if commit not in served.commits:
                return self._answer(404, b"", **{"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": name} for name in served.commits[commit]]
            return self._answer(200, json.dumps({"id": ID, "sha": commit, "siblings": siblings}).encode())
        commit, _, name = path.removeprefix(resolve).partition("/")
        if not path.startswith(resolve) or name not in served.commits.get(commit, {}):
            return self._answer(404, b"", **{"X-Error-Code": "RepoNotFound"})
        content = served.commits[commit][name]
        if not name.endswith(LARGE):
            return self._answer(
                200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **{"X-Repo-Commit": commit}
            )
        return self._answer(
            302,
            b"",
            Location=f"http://localhost:{served.server_port}/store/{commit}/{name}",  # another host than the hub's
            **{
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{served.etag(content)}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def _stored(self, content: bytes) -> None:
        """Answer with a file of the store, or with the range of it that was asked for."""
        wanted = self.headers.get("Range")
        if wanted is None or not self.server.knows_ranges:
            return self._answer(200, content)
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.server.sent += len(part)
        size = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        return self._answer(206, part, **size)

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        always = {"Content-Length": str(len(content)), "X-HF-Warning": "topic; a hint that huggingface_hub would log"}
        for key, value in {**headers, **always}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture(scope="module", autouse=True)
def _no_proxy() -> Iterator[None]:
    """Keep a proxy of the machine out of the way; the HTTP client reads it once, and costs more than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        huggingface_hub.close_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub to this process, as its environment would: huggingface_hub reads that at its import."""
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    server.commits = {NEW: dict(PLAIN), OLD: {**PLAIN, "config.json": b'{"old": 1}', "model.safetensors": b"old"}}
    yield server
    server.close()


@pytest.mark.parametrize("name", ["org/name", "Salesforce/blip-image-captioning-base", "a/b", "a.b/c_d-e.f", "0/1"])
def test_a_hub_id_is_an_organisation_and_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name)
    huggingface_hub.utils.validate_repo_id(name)
    Path(name).parent.mkdir()
    Path(name).symlink_to("nowhere")
    assert not is_hub_id(name)


NO_IDS = [
    "mini",
    "",
    "/",
    "a/",
    "/a",
    "a/b/c",
    "./a",
    "../a",
    "~/a",
    "a/.b",
    "a/b.",
    "a/-b",
    "a--b/c",
    "a/b..c",
    "a/b.git",
]
NO_IDS += ["a/b c", "a/ü", "a/b\n", "a\\b/c", "a/" + "b" * 97, "preset:seed", "models/model.safetensors"]


@pytest.mark.parametrize("name", NO_IDS)
def test_what_is_a_path_or_no_name_is_no_hub_id(name: str) -> None:
    assert not is_hub_id(name)


def test_only_what_a_model_needs_is_fetched(served: Hub) -> None:
    needed = ["generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"]
    needed += ["special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"]
    needed += ["preprocessor.json", "generation.json"]
    others = [
        "modeling_org.py",
        "README.md",
        "flax_model.msgpack",
        "tf_model.h5",
        "pytorch_model.bin",
        "onnx/model.onnx",
    ]
    others += ["../escape.json", "model.fp16.safetensors", "sub/config.json", "chat_template.jinja", "model.py"]
    served.commits[NEW] = PLAIN | {name: name.encode() for name in needed + others}
    folder = fetch(ID)
    fetched = served.fetched()
    assert sorted(fetched) == sorted([*PLAIN, *needed]) == sorted(path.name for path in folder.iterdir())
    assert fetched[-1] == "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_second_call_fetches_nothing_and_asks_once(served: Hub) -> None:
    folder = fetch(ID)
    assert set(served.fetched()) == set(PLAIN)
    assert fetch(ID) == folder
    assert [path for _, path, _ in served.asked] == [f"/api/models/{ID}"]


def test_an_index_brings_its_shards_and_no_others(served: Hub) -> None:
    others = ["model-00001-of-00009.safetensors", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]
    served.commits[NEW] = {
        "config.json": b"{}",
        INDEX: _index(*SHARDS),
        **{shard: shard.encode() for shard in SHARDS},
        **dict.fromkeys(others, b""),
    }
    folder = fetch(ID)
    assert served.fetched() == ["config.json", INDEX, *SHARDS]
    assert list(weight_files(Folder(folder)).files) == [folder / shard for shard in SHARDS]


@pytest.mark.parametrize(
    "weights",
    [
        {"pytorch_model.bin": b"1"},
        {
            "pytorch_model.bin.index.json": _index("pytorch_model-00001-of-00001.bin"),
            "pytorch_model-00001-of-00001.bin": b"1",
        },
    ],
    ids=["one", "shards"],
)
def test_pickles_are_fetched_where_there_are_no_safetensors(served: Hub, weights: dict[str, bytes]) -> None:
    served.commits[NEW] = {"config.json": b"{}", **weights}
    assert weight_files(Folder(fetch(ID))).format == "pytorch"
    assert served.fetched() == ["config.json", *weights]


@pytest.mark.parametrize(
    "shard", ["evil.safetensors", "../model-00001-of-00001.safetensors", "model-00001-of-00001.safetensors"]
)
def test_an_index_that_names_other_files_is_refused(served: Hub, shard: str) -> None:
    there = {} if shard.startswith("model") else {shard: b"1"}
    served.commits[NEW] = {"config.json": b"{}", INDEX: _index(shard), **there}
    with pytest.raises(ModelError, match="names no shard of its repository"):
        fetch(ID)
    assert served.fetched() == ["config.json", INDEX]


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_a_name_or_a_commit(served: Hub, revision: str) -> None:
    assert (fetch(ID, revision=revision) / "config.json").read_bytes() == b'{"old": 1}'
    assert (fetch(ID) / "config.json").read_bytes() == b"{}"
    assert (fetch(ID, revision=revision, offline=True) / "config.json").read_bytes() == b'{"old": 1}'
    assert (fetch(ID, offline=True) / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("revision", ["", "../main", "a/../../b", "/main", "a\0b", "a b", "x" * 300])
def test_a_revision_that_cannot_be_is_wrong_usage(served: Hub, revision: str) -> None:
    with pytest.raises(UsageError, match="no revision"):
        fetch(ID, revision=revision)
    assert not served.asked


def test_a_name_that_moved_on_brings_the_new_files(served: Hub) -> None:
    served.refs["main"] = OLD
    assert fetch(ID).name == OLD
    served.refs["main"] = NEW
    served.fetched()
    assert fetch(ID).name == NEW
    assert served.fetched() == ["config.json", "model.safetensors"]  # the tokenizer's blob is there already
    assert fetch(ID, offline=True).name == NEW


def test_offline_takes_the_cache_and_asks_nobody(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no complete copy in the cache \(org/name, .*without --offline"):
        fetch(ID, offline=True)
    assert not served.asked
    folder = fetch(ID)
    served.asked.clear()
    assert fetch(ID, offline=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(ID) == folder
    with pytest.raises(ModelError, match="org/name, revision v1, "):
        fetch(ID, revision="v1")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no complete copy"):
        fetch(ID)
    assert not served.asked


def test_a_hub_that_is_gone_leaves_the_cached_copy(served: Hub) -> None:
    folder, notes = fetch(ID), []
    served.close()
    start = time.monotonic()
    assert fetch(ID, note=notes.append) == folder
    [note] = notes
    assert note.startswith("the hub cannot be reached (org/name, ") and folder.name[:12] in note and "\n" not in note
    with pytest.raises(ModelError, match=r"cannot be reached \(org/name, revision v1, .*name a folder"):
        fetch(ID, revision="v1")
    with pytest.raises(ModelError, match=r"cannot be reached \(org/other, .*use --offline"):
        fetch("org/other")
    assert time.monotonic() - start < 5


def test_a_hub_that_is_out_of_order_leaves_the_cached_copy(served: Hub) -> None:
    served.refusal = (503, "")
    with pytest.raises(ModelError, match=r"cannot be reached .*status 503"):
        fetch(ID)
    served.refusal = None
    folder = fetch(ID)
    served.refusal = (429, "")
    assert fetch(ID) == folder


def test_a_hub_that_does_not_answer_is_given_up(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS", 0.1)
    served.delay = 2.0
    start = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch(ID)
    assert time.monotonic() - start < 1.5


def test_a_download_that_breaks_off_leaves_the_older_copy(served: Hub) -> None:
    served.refs["main"] = OLD
    folder = fetch(ID)
    served.refs["main"] = NEW
    served.commits[NEW] = {"config.json": b"{}", INDEX: _index(*SHARDS), SHARDS[0]: b"1"}
    with pytest.raises(ModelError, match="names no shard"):
        fetch(ID)
    assert fetch(ID, offline=True) == folder


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (
            404,
            "RepoNotFound",
            r"no such model here or on the hub \(org/name, status 404\); check the name, or set HF_TOKEN",
        ),
        (401, "RepoNotFound", r"no such model .*status 401"),
        (401, "", r"no such model .*status 401"),
        (403, "", r"no such model .*status 403"),
        (404, "RevisionNotFound", r"no such revision on the hub \(org/name, main\); check --revision"),
        (403, "GatedRepo", r"asks for consent \(org/name\); accept its terms on the hub and set HF_TOKEN"),
    ],
)
def test_a_refusal_says_what_to_do(served: Hub, status: int, code: str, told: str) -> None:
    fetch(ID)
    served.refusal = (status, code)  # the hub answered, so the cache is no substitute
    with pytest.raises(ModelError, match=told) as caught:
        fetch(ID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_model_is_refused(served: Hub, missing: str) -> None:
    del served.commits[NEW][missing]
    with pytest.raises(ModelError, match=r"no model in the repository \(org/name, looked for config\.json and one of"):
        fetch(ID)
    assert not served.fetched()


def test_what_is_no_hub_is_said(served: Hub) -> None:
    served.refs["main"] = "../../evil"
    served.commits["../../evil"] = PLAIN
    with pytest.raises(ModelError, match=r"no hub's answer .*check HF_ENDPOINT"):
        fetch(ID)


def test_the_token_goes_to_the_hub_and_not_to_its_store(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(ID)
    sent = {path.startswith("/store/"): token for _, path, token in served.asked}
    assert sent == {False: "Bearer hf_secret", True: None}


def test_a_cache_that_cannot_be_written_is_named(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the cache should be")
    with pytest.raises(ModelError, match=r"cache cannot be written \(.*hub.*set HF_HOME"):
        fetch(ID)


def test_the_cache_tells_the_sha256_of_large_files_alone(served: Hub, tmp_path: Path) -> None:
    folder = fetch(ID)
    assert blob_sha256(folder / "model.safetensors") == hashlib.sha256(b"weights").hexdigest()
    assert blob_sha256(folder / "config.json") is None
    blob = (folder / "model.safetensors").resolve()
    assert blob_sha256(blob) is None
    assert blob_sha256(folder / "none") is None
    (tmp_path / "link").symlink_to(blob)
    assert blob_sha256(tmp_path / "link") is None
    blob.rename(tmp_path / ("f" * 64))  # a store that repositories share names blobs by another hash
    blob.symlink_to(tmp_path / ("f" * 64))
    assert blob_sha256(folder / "model.safetensors") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("progress", [False, True])
def test_bars_are_off_unless_wanted_and_huggingface_hubs_settings_come_back(served: Hub, progress: bool) -> None:
    hub_logging.set_verbosity_warning()
    enable_progress_bars()
    filters = list(warnings.filters)
    served.look = are_progress_bars_disabled
    fetch(ID, progress=progress)
    assert set(served.seen) == {not progress}
    assert (hub_logging.get_verbosity(), are_progress_bars_disabled()) == (logging.WARNING, False)
    assert list(warnings.filters) == filters


def test_the_environment_holds_and_a_good_run_says_nothing(served: Hub, tmp_path: Path) -> None:
    code = f"from mmt_cli.checkpoint.hub import fetch; print(fetch({ID!r}, progress=True))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TQDM_", "TRANSFORMERS_"))}
    home = {**kept, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": served.url, "HF_TOKEN": "hf_secret"}

    def run(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=home | env, capture_output=True, text=True, timeout=60)

    first = run()
    assert (first.returncode, first.stderr) == (0, "")
    assert Path(first.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
    assert ("GET", f"/api/models/{ID}", "Bearer hf_secret") in served.asked
    served.asked.clear()
    second = run(HF_HUB_OFFLINE="1")
    assert (second.returncode, second.stderr, second.stdout) == (0, "", first.stdout)
    assert not served.asked


def _weights(tensors: int, *, cut: int = 0, dtype: str = "F32") -> bytes:
    entries = {f"t{i}": {"dtype": dtype, "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i in range(tensors)}
    raw = json.dumps(entries).encode()
    return (len(raw).to_bytes(8, "little") + raw + bytes(8 * tensors))[: None if not cut else -cut]


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("tensors", [1, 5_000], ids=["short", "over the first request"])
def test_headers_come_without_the_weights(served: Hub, tensors: int, knows_ranges: bool) -> None:
    served.knows_ranges = knows_ranges
    content = _weights(tensors)
    served.commits[NEW] = PLAIN | {"model.safetensors": content}
    snapshot = fetch_headers(ID)
    [(path, remote)] = snapshot.headers.items()
    assert path == snapshot.folder / "model.safetensors" and not path.exists()
    assert remote.sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(remote.header.tensors) == sorted(f"t{i}" for i in range(tensors))
    assert (snapshot.folder / "config.json").exists()
    assert not knows_ranges or served.sent <= 100_000 + len(content) - 8 * tensors


def test_headers_of_shards_come_one_by_one(served: Hub) -> None:
    served.commits[NEW] = {"config.json": b"{}", INDEX: _index(*SHARDS), **dict.fromkeys(SHARDS, _weights(1))}
    snapshot = fetch_headers(ID)
    assert [path.name for path in snapshot.headers] == list(SHARDS)
    weights = weight_files(Folder(snapshot.folder), elsewhere=dict.fromkeys(snapshot.headers))
    assert list(weights.files) == list(snapshot.headers)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff" * 8, "header of 18446744073709551615 bytes"),
        (_weights(1, cut=1), "tensors end at data byte 8"),
        (_weights(1, dtype="F31"), "dtype of 't0' is unknown"),
        (b"\x05" + bytes(7) + b"{", "header ends at byte 13"),
        (b"\x02" + bytes(7) + b"[]", "no JSON object"),
        (b"", "header ends at byte 8"),
    ],
)
def test_the_rules_for_headers_hold_for_what_a_hub_sends(served: Hub, content: bytes, told: str) -> None:
    served.commits[NEW] = PLAIN | {"model.safetensors": content}
    with pytest.raises(ModelError, match=told) as caught:
        fetch_headers(ID)
    assert "\n" not in str(caught.value)


def test_weights_that_are_in_the_cache_are_read_there(served: Hub) -> None:
    folder = fetch(ID)
    served.asked.clear()
    assert fetch_headers(ID).folder == folder
    assert not fetch_headers(ID).headers
    assert not fetch_headers(ID, offline=True).headers
    assert not served.fetched()


def test_a_look_at_the_headers_is_no_complete_copy(served: Hub) -> None:
    served.commits[NEW] = PLAIN | {"model.safetensors": _weights(1)}
    fetch_headers(ID)
    with pytest.raises(ModelError, match="no complete copy"):
        fetch(ID, offline=True)
    with pytest.raises(ModelError, match="no complete copy"):
        fetch_headers(ID, offline=True)


def test_pickles_have_no_header_and_are_fetched(served: Hub) -> None:
    served.commits[NEW] = {"config.json": b"{}", "pytorch_model.bin": b"1"}
    snapshot = fetch_headers(ID)
    assert (snapshot.folder / "pytorch_model.bin").exists() and not snapshot.headers


def test_the_token_goes_to_the_hub_for_headers_and_not_to_its_store(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    served.commits[NEW] = PLAIN | {"model.safetensors": _weights(1)}
    fetch_headers(ID)
    assert {path.startswith("/store/"): token for _, path, token in served.asked} == {
        False: "Bearer hf_secret",
        True: None,
    }


def test_a_hub_that_is_gone_leaves_the_cached_copys_headers(served: Hub) -> None:
    folder, notes = fetch(ID), []
    served.close()
    assert fetch_headers(ID, note=notes.append).folder == folder
    assert len(notes) == 1


def _tiny() -> dict[str, bytes]:
    """Return the files of a sound checkpoint."""
    config = preset("tiny")
    entries: dict[str, object] = {}
    end = 0
    for name, tensor in MultimodalTransformer(config).own_state().items():
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    raw = json.dumps(entries).encode()
    own = {"format": "mmt", "format_version": 1, **config.to_json()}
    return {
        "config.json": json.dumps(own).encode(),
        "model.safetensors": len(raw).to_bytes(8, "little") + raw + bytes(end),
    }


def _hashes(contents: Contents) -> tuple[dict[str, str], str]:
    """Return the sha256 of each file, and all that is shown for them."""
    asked = Asked(depth=1, tensors=False, config=False, sha256=True)
    view = summary_view(contents, summary_of(contents), asked)
    return view.record()["sha256"], str(view.parts())


def test_the_hub_tells_the_sha256_of_weights_that_stay_there(served: Hub) -> None:
    served.commits[NEW] = _tiny()
    digests = {"model.safetensors": hashlib.sha256(served.commits[NEW]["model.safetensors"]).hexdigest()}
    told, text = _hashes(look(ID))
    assert told == digests and "as the hub tells it" in text
    assert served.sent <= 100_000  # the header alone
    fetch(ID)
    told, text = _hashes(look(ID))
    assert told == digests and "as the hub tells it" not in text


def test_where_the_hub_tells_no_sha256_it_is_said(served: Hub) -> None:
    served.commits[NEW], served.tells_sha256 = _tiny(), False
    contents = look(ID)
    with pytest.raises(ModelError, match=r"^the hub tells no sha256 \('name', 'model.safetensors'\); fetch the file"):
        contents.sha256()
    fetch(ID)  # then it is read
    assert list(look(ID).sha256()) == ["model.safetensors"]
