"""Check S3 servers that do not know the checksums of S3 (x-amz-checksum-*, trailers, aws-chunked) and refuse them."""

import base64
import hashlib
import io
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from s2v_tasks.errors import ConfigurationError, TransientError
from s2v_tasks.settings import load_settings
from s2v_tasks.storage.objects import ObjectHead
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.storage.s3_errors import ObjectDamagedError

ANSWER = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
REFUSALS = {
    "GCS, old Ceph": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
    "InvalidRequest": (400, "InvalidRequest", "The value specified in the x-amz-checksum-sha256 header is not known"),
    "InvalidArgument": (400, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a sha256"),
    "the sum of the chunks": (400, "XAmzContentSHA256Mismatch", "The provided header does not match what is computed"),
    "Ceph 16, rclone over HTTPS": (411, "MissingContentLength", ""),
    "in words alone": (400, "BadRequest", "Unsupported Content-Encoding: aws-chunked"),
}  # fmt: skip


@dataclass
class OldServer:
    """Moto behind a proxy that refuses what servers before 2022 did not know; bulk deletions need Content-MD5.

    capitals: the names of headers are capitalised, as servers and proxies in Go do it.
    """

    app: Callable[..., Iterable[bytes]]
    refusal: tuple[int, str, str] = REFUSALS["GCS, old Ceph"]
    capitals: bool = False
    port: int = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = {name[5:].lower().replace("_", "-"): environ[name] for name in environ if name.startswith("HTTP_")}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        refusal = None
        if (
            any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in headers)
            or "aws-chunked" in headers.get("content-encoding", "")
            or headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        ):
            refusal = self.refusal
        elif environ["REQUEST_METHOD"] == "POST" and environ["QUERY_STRING"].startswith("delete"):
            md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            if headers.get("content-md5") != md5:
                refusal = (400, "MissingContentMD5", "Missing required header for this request: Content-MD5")
        if refusal is None:
            return self.app(environ, self._capitalised(start_response) if self.capitals else start_response)
        status, code, message = refusal
        start_response(f"{status} Refused", [("Content-Type", "application/xml")])
        return [ANSWER.format(code=code, message=message).encode()]

    def _capitalised(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [(name.title(), value) for name, value in headers], *rest)

        return start


@pytest.fixture(scope="module")
def old_server() -> Iterator[OldServer]:
    server = OldServer(DomainDispatcherApplication(create_backend_app))
    listener = make_server("127.0.0.1", 0, server, threaded=True)
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    listener.shutdown()
    thread.join()
    listener.server_close()


def store_on(server: OldServer, checksums: Any) -> ObjectStore:
    server.refusal = REFUSALS["GCS, old Ceph"]
    store = ObjectStore(
        f"s3://old-{uuid.uuid4().hex}",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        access_key_id="test",
        secret_access_key="test-secret",
        checksums=checksums,
    )
    store._transfer = TransferConfig(multipart_threshold=6 * 1024**2, multipart_chunksize=5 * 1024**2)
    store.ensure_bucket()
    return store


@pytest.fixture
def store(old_server: OldServer) -> ObjectStore:
    return store_on(old_server, "when_required")


@pytest.fixture
def refused(old_server: OldServer) -> ObjectStore:
    return store_on(old_server, "always")


def test_a_server_without_checksums_works_by_one_setting(store: ObjectStore, tmp_path: Path) -> None:
    """With the setting, small objects, files, multipart files, copies and bulk deletions work."""
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 50_000)  # three parts
    small = store.put_bytes("a", b"1", "text/plain")
    whole = store.upload(large, "b", "video/mp4")
    store.copy("b", "c/d & <e>")
    assert store.head("a") == ObjectHead(1, small.sha256)
    assert store.head("c/d & <e>") == ObjectHead(large.stat().st_size, whole.sha256)
    assert store.download(whole, tmp_path / "again").read_bytes() == large.read_bytes()
    store.delete_all(["a", "b", "c/d & <e>", "never-there"])
    assert list(store.listing("")) == []


def test_md5_is_used_where_it_is_forbidden_for_security(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk deletion works under FIPS, where MD5 is allowed for checksums only."""
    allowed = hashlib.md5

    def md5(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return allowed(data, usedforsecurity=False)

    store.put_bytes("a", b"1", "text/plain")
    monkeypatch.setattr(hashlib, "md5", md5)
    store.delete_all(["a"])
    monkeypatch.undo()
    assert list(store.listing("")) == []


def test_bytes_are_verified_without_checksums_of_the_server(store: ObjectStore, tmp_path: Path) -> None:
    """Bytes that another program has changed are reported as damaged, for any server."""
    artifact = store.put_bytes("a", b"frames", "video/mp4")
    store._client.put_object(Bucket=store.bucket, Key="a", Body=b"framez", Metadata={"sha256": artifact.sha256})
    with pytest.raises(ObjectDamagedError):
        store.download(artifact, tmp_path / "a")


def test_the_names_of_headers_have_no_case(
    old_server: OldServer, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SHA-256 of an object is found if a server or a proxy answers with `X-Amz-Meta-Sha256`."""
    artifact = store.put_bytes("a", b"1", "text/plain")
    monkeypatch.setattr(old_server, "capitals", True)
    assert store.head("a") == ObjectHead(1, artifact.sha256)


class _SumOfTheWhole(BaseHTTPRequestHandler):
    """Answer with the checksum of the whole object to a request for a range or a new ETag, as rclone does."""

    def do_GET(self) -> None:
        whole = b"0123456789"
        self.send_response(206 if "Range" in self.headers else 304)
        self.send_header("ETag", '"1"')
        if "Range" in self.headers:
            self.send_header("Content-Length", "2")
            self.send_header("Content-Range", "bytes 2-3/10")
        self.send_header("x-amz-checksum-sha256", base64.b64encode(hashlib.sha256(whole).digest()).decode())
        self.end_headers()
        if "Range" in self.headers:
            self.wfile.write(whole[2:4])

    def log_message(self, *_: object) -> None:
        return


def test_the_checksum_of_the_whole_object_is_not_that_of_a_range() -> None:
    """A player gets its range, or 304, if the server sends the checksum of the whole object with it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SumOfTheWhole)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    store = ObjectStore("s3://bucket", endpoint_url=endpoint, access_key_id="a", secret_access_key="b")
    try:
        assert b"".join(store.open("a", byte_range="bytes=2-3").chunks()) == b"23"
        assert store.open("a", known_etag='"1"').status == 304
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("way", ["put_bytes", "upload", "upload in parts", "delete_all"])
def test_a_refusal_names_the_setting(
    old_server: OldServer, refused: ObjectStore, tmp_path: Path, refusal: str, way: str
) -> None:
    """With the default, each write is a configuration error that quotes the server and names the setting."""
    old_server.refusal = REFUSALS[refusal]
    path = tmp_path / "file"
    path.write_bytes(b"1" * (7 * 1024**2 if way == "upload in parts" else 1))
    ways: dict[str, Callable[[], object]] = {
        "put_bytes": lambda: refused.put_bytes("a", b"1", "text/plain"),
        "delete_all": lambda: refused.delete_all(["a"]),
    }
    with pytest.raises(ConfigurationError, match=r"set S2V_S3_CHECKSUMS=when_required\.$") as caught:
        ways.get(way, lambda: refused.upload(path, "a", "video/mp4"))()
    assert REFUSALS[refusal][2] in str(caught.value)


def test_the_setting_is_not_named_for_other_causes(old_server: OldServer, store: ObjectStore) -> None:
    """The setting is not named if no checksum was sent, or if bytes were damaged on the way."""
    old_server.refusal = (400, "InvalidRequest", "You can only do this to a bucket that exists.")
    store._client.meta.events.register("before-sign.s3.PutObject", _add_a_checksum)
    with pytest.raises(TransientError) as caught:
        store.put_bytes("a", b"1", "text/plain")
    assert "S2V_S3_CHECKSUMS" not in str(caught.value)


def _add_a_checksum(request: Any, **_: Any) -> None:
    request.headers["x-amz-checksum-sha256"] = "0"


@pytest.mark.parametrize("code", ["BadDigest", "InvalidDigest", "IncompleteBody"])
def test_damage_on_the_way_to_the_server_is_tried_again(old_server: OldServer, refused: ObjectStore, code: str) -> None:
    """An upload that is damaged on the way is repeated, and checksums stay in use."""
    old_server.refusal = (400, code, "The checksum you specified did not match what we received.")
    with pytest.raises(TransientError) as caught:
        refused.put_bytes("a", b"1", "text/plain")
    assert "S2V_S3_CHECKSUMS" not in str(caught.value)


def test_the_setting_reaches_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store gets the value of the setting; its default is `always`."""
    assert ObjectStore.from_settings(load_settings())._server.checksums == "always"
    monkeypatch.setenv("S2V_S3_CHECKSUMS", "when_required")
    load_settings.cache_clear()
    assert ObjectStore.from_settings(load_settings())._server.checksums == "when_required"
