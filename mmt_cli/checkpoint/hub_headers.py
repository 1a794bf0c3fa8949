"""The headers of a hub's weights, by range requests: what stands in a file of gigabytes, for some kilobytes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmt_cli.checkpoint.header import Header, header_length, parse_header
from mmt_cli.errors import ModelError, shown

_FIRST_BYTES = 100_000  # hold the whole header of most files, which saves a second request
_SECONDS = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RemoteHeader:
    """What a hub tells of a file of weights: its header, and its sha256 where it is kept outside git, under that."""

    header: Header
    sha256: str | None


def range_header(repo_id: str, name: str, commit: str, path: Path) -> RemoteHeader:
    """Return the header of one safetensors file on the hub, by the rules that hold for files on a disk.

    Args:
        repo_id: `org/name`.
        name: of the file in the repository.
        commit: which of its versions.
        path: where the file would lie, for messages and the tensors' description.

    Raises:
        ModelError: the header is broken, or the store gives other bytes than it was asked for.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but in no list

    url, headers = hf_hub_url(repo_id, name, revision=commit), build_hf_headers()
    raw, size, sha256 = _ranged(url, headers, 0, _FIRST_BYTES)
    length = header_length(raw[:8], path, size)
    rest = raw[8 : 8 + length]
    if len(rest) < length:
        more, _, _ = _ranged(url, headers, 8 + len(rest), length - len(rest))
        rest += more
    if len(rest) < length:
        raise ModelError(f"the hub broke off within a header ({shown(str(path))}, {len(rest)} of {length}); try again")
    return RemoteHeader(header=parse_header(rest, path, size), sha256=sha256)


def _ranged(url: str, headers: dict[str, str], start: int, count: int) -> tuple[bytes, int, str | None]:
    """Return `count` bytes of a file from `start` on, fewer where it ends, the whole file's size, and its sha256.

    A store that knows no ranges sends the file from its beginning: it is read as far as needed, and then left.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # likewise

    wanted = {**headers, "Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=wanted, timeout=_SECONDS, follow_redirects=True) as response:
        hf_raise_for_status(response)
        size = _size(response, url)
        skip = 0 if response.status_code == 206 else start
        got = bytearray()
        for chunk in response.iter_raw():
            got += chunk
            if len(got) >= skip + count:
                break
        sha256 = _sha256([*response.history, response])
    return bytes(got[skip : skip + count]), size, sha256


def _sha256(answers: list[Any]) -> str | None:
    """Return the hash that the hub gave on the way to its store; None where it gave none, as of files in git."""
    tags = (answer.headers.get("X-Linked-Etag", "").strip('"') for answer in answers)
    return next((tag for tag in tags if _SHA256.fullmatch(tag)), None)


def _size(response: Any, url: str) -> int:
    told = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    if not told.isascii() or not told.isdecimal() or len(told) > 18:
        raise ModelError(f"the hub does not say how large a file is ({shown(url)}, {shown(told)}); check HF_ENDPOINT")
    return int(told)
