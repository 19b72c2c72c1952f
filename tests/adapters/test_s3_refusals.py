"""What goes wrong with a bucket: each refusal says what, where, and what to do (S8); no key is repeated (S7)."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from builders import sha256
from s3_servers import BUCKET, SeaweedServer
from scripted_s3 import says, scripted, send

from p3s_prefect.adapters import s3_client, s3_parts, s3_server
from p3s_prefect.adapters.s3_client import Keys
from p3s_prefect.adapters.s3_parts import checksum_of
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.adapters.stores import ask_store, open_store
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, StoreDisturbed, StoreError, StoreUnreachable
from p3s_prefect.core.ports import ObjectStore

pytestmark = pytest.mark.sockets


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask once, and do not wait."""
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    monkeypatch.setattr(s3_client, "_CONNECT_S", 0.3)
    monkeypatch.setattr(s3_client, "_SILENT_S", 0.3)
    monkeypatch.setattr(s3_client, "_HASTY_CONNECT_S", 0.3)
    monkeypatch.setattr(s3_client, "_HASTY_SILENT_S", 0.3)


EVERYTHING: list[Callable[[ObjectStore, Path], object]] = [
    lambda store, _: store.put_bytes("a/b", b"some"),
    lambda store, _: store.read_bytes("a/b"),
    lambda store, scratch: store.fetch("a/b", scratch, sha256(b"some")),
    lambda store, _: list(store.list("a/")),
    lambda store, _: store.delete("a/b"),
    lambda store, _: store.sweep_unfinished(0.0),
    lambda store, _: ask_store(store),
]


def _all_say(place: BucketPlace, scratch: Path, kind: type[StoreError], *words: str) -> None:
    """Every way to use the store fails with this kind of error and these words."""
    for use in EVERYTHING:
        with pytest.raises(StoreError) as told:
            use(S3Store(place), scratch)
        assert type(told.value) is kind
        assert told.value.fix
        for word in words:
            assert word in str(told.value)


def _credentials(path: Path, access_key: str, secret_key: str) -> str:
    s3_server.write_credentials(path, Keys(access_key=access_key, secret_key=secret_key))
    return str(path)


# --- a real server --------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_told(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """S7, S8."""
    credentials = _credentials(tmp_path / "wrong", "WRONGKEY", seaweed.keys.secret_key)
    _all_say(seaweed.place(credentials=credentials), tmp_path, StoreError, "does not know the access key", "KEY_ID")


def test_a_wrong_secret_is_told_and_not_repeated(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """S7, S8."""
    credentials = _credentials(tmp_path / "wrong", seaweed.keys.access_key, "wrong-secret")
    place = seaweed.place(credentials=credentials)
    _all_say(place, tmp_path, StoreError, "does not accept the secret key", "AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError) as told:
        S3Store(place).read_bytes("a")
    assert "wrong-secret" not in repr(told.value) + str(told.value)


def test_a_bucket_that_is_not_there_is_told(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """S8."""
    words = ("there is no bucket absent", seaweed.endpoint, "`url` of the store", "`bucket` of the stream")
    for use in EVERYTHING[:4] + EVERYTHING[-1:]:
        with pytest.raises(StoreError) as told:
            use(S3Store(seaweed.place(bucket="absent")), tmp_path)
        assert type(told.value) is StoreError
        assert all(word in str(told.value) for word in words)


def test_a_bucket_that_vanishes_is_told_and_is_usable_when_it_is_back(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """S8, S3: bad input in between does no lasting harm."""
    store = S3Store(seaweed.place(bucket="vanishing"))
    with closing(seaweed.client()) as client:
        client.create_bucket(Bucket="vanishing")
        put = store.put_bytes("a/b", b"some")
        client.delete_object(Bucket="vanishing", Key=store._place.key("a/b"))
        client.delete_bucket(Bucket="vanishing")
        with pytest.raises(StoreError, match="there is no bucket vanishing"):
            store.put_bytes("a/c", b"some")
        with pytest.raises(StoreError, match="there is no bucket vanishing"):
            store.fetch("a/b", tmp_path, put.sha256)
        client.create_bucket(Bucket="vanishing")
    with pytest.raises(ObjectMissing):
        store.read_bytes("a/b")
    assert store.put_bytes("a/b", b"some") == put


def test_an_object_that_changed_behind_the_ledger_is_not_read(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """V13, S8: the server keeps a checksum of the new bytes, which fits them; the ledger's does not."""
    store = S3Store(seaweed.place())
    put = store.put_bytes("a/b", b"some")
    with closing(seaweed.client()) as client:
        changed = {"Bucket": BUCKET, "Key": store._place.key("a/b")}
        client.put_object(**changed, Body=b"else", ChecksumSHA256=checksum_of(b"else"))
    with pytest.raises(ChecksumMismatch, match="a/b"):
        store.fetch("a/b", tmp_path, put.sha256)
    with pytest.raises(StoreError, match="another object"):
        store.put_bytes("a/b", b"some")


def test_keys_come_from_the_environment(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, S7: as boto3 finds them; without any, what to set is told."""
    place = replace(seaweed.place(), credentials=None)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"no usable keys(.|\n)*AWS_ACCESS_KEY_ID"):
        S3Store(place).put_bytes("a", b"some")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.keys.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.keys.secret_key)
    s3_client._client.cache_clear()
    other = replace(seaweed.place(), credentials=None)
    S3Store(other).put_bytes("a", b"some")
    assert S3Store(other).read_bytes("a") == b"some"


def test_a_file_of_keys_that_cannot_be_read_is_told(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """S7, S8: and what stands in it is not repeated."""
    (tmp_path / "torn").write_text("[default]\naws_access_key_id = TOP-SECRET\n")
    for credentials in (tmp_path / "absent", tmp_path / "torn"):
        with pytest.raises(StoreError, match=credentials.name) as told:
            S3Store(seaweed.place(credentials=str(credentials))).put_bytes("a", b"some")
        assert "TOP-SECRET" not in str(told.value)


def test_the_places_of_a_server_have_one_client(seaweed: SeaweedServer, tmp_path: Path) -> None:
    """P2: a station follows many streams of a server, each of which asks it every second."""
    clients = {id(s3_client.s3_client(seaweed.place(bucket=f"camera-{number}"))) for number in range(20)}
    assert len(clients) == 1
    credentials = _credentials(tmp_path / "other", "OTHERKEY", seaweed.keys.secret_key)
    for other in ({"credentials": credentials}, {"region": "eu-west-1"}):
        assert id(s3_client.s3_client(seaweed.place(**other))) not in clients
    lent = seaweed.place()
    s3_client.lend_keys(lent, Keys(access_key="LENTKEY", secret_key="lent"))  # noqa: S106
    assert id(s3_client.s3_client(lent)) not in clients


def test_a_region_is_that_of_the_client(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """V18 (region): the declared one, else the machine's, else us-east-1."""
    assert s3_client.s3_client(seaweed.place(region="eu-west-1")).meta.region_name == "eu-west-1"
    assert s3_client.s3_client(seaweed.place()).meta.region_name == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    s3_client._client.cache_clear()
    assert s3_client.s3_client(seaweed.place()).meta.region_name == "eu-north-1"


# --- no server, and broken ones --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    """S8, S3: which is told apart from a refusal, as it may be back soon."""
    with socket.create_server((s3_server.HOST, 0)) as taken:
        endpoint = f"http://{s3_server.HOST}:{taken.getsockname()[1]}"
    credentials = _credentials(tmp_path / "keys", "key", "secret")
    place = BucketPlace(bucket="central", endpoint=endpoint, credentials=credentials)
    _all_say(place, tmp_path, StoreUnreachable, "does not answer", endpoint, "`endpoint` of the store or stream")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_silent_is_given_up(tmp_path: Path) -> None:
    """S8, S3: within the time that is set, however long it would have taken."""
    with scripted(tmp_path, lambda _: None) as script:
        script.answer = lambda _: (script.released.wait(), None)[1]
        with pytest.raises(StoreUnreachable, match="does not answer"):
            S3Store(script.place).put_bytes("a", b"some")


def test_a_server_that_is_disturbed_is_asked_again(tmp_path: Path) -> None:
    """S3: with back-off, and no one else notices."""
    with scripted(tmp_path, says(503, "SlowDown")) as script:

        def third_time(asked: BaseHTTPRequestHandler) -> None:
            (says(503, "SlowDown") if len(script.asked) < 3 else (lambda found: send(found, 200, b"some")))(asked)

        script.answer = third_time
        assert S3Store(script.place).read_bytes("a") == b"some"
        assert len(script.asked) == 3


SAYS = [
    (404, "NoSuchBucket", StoreError, "there is no bucket central"),
    (403, "InvalidAccessKeyId", StoreError, "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", StoreError, "AWS_SECRET_ACCESS_KEY"),
    (403, "AccessDenied", StoreError, "rights to list the bucket"),
    (400, "ExpiredToken", StoreError, "AWS_SESSION_TOKEN"),
    (400, "AuthorizationHeaderMalformed", StoreError, "`region` of the store or stream"),
    (403, "RequestTimeTooSkewed", StoreError, "Set this machine's clock"),
    (507, "InsufficientStorage", StoreError, "no room left"),
    (403, "QuotaExceeded", StoreError, "raise its quota"),
    (503, "SlowDown", StoreUnreachable, "tried again"),
    (500, "InternalError", StoreDisturbed, "tried again"),
    (501, "NotImplemented", StoreDisturbed, "tried again"),
    (400, "SomethingNew", StoreError, "SomethingNew: said by the script"),
]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("status", "code", "kind", "words"), SAYS, ids=[code for _, code, _, _ in SAYS])
def test_each_refusal_has_its_reason_and_its_fix(
    tmp_path: Path, status: int, code: str, kind: type[StoreError], words: str
) -> None:
    """S8: also where the answer to HEAD has no words."""
    with scripted(tmp_path, says(status, code)) as script:
        for use in EVERYTHING[1:4] + EVERYTHING[-1:] + ([] if status == 404 else EVERYTHING[:1]):
            with pytest.raises(StoreError) as told:
                use(S3Store(script.place), tmp_path)
            assert type(told.value) is kind
            assert words in str(told.value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", ["PreconditionFailed", "NoSuchUpload", "ConditionalRequestConflict"])
def test_a_key_that_is_called_taken_and_is_not_there(tmp_path: Path, impatient: None, code: str) -> None:
    """S8: nobody is told that another object is there; the attempt may be tried again."""

    def answer(asked: BaseHTTPRequestHandler) -> None:
        (says(412, code) if asked.command == "PUT" else says(404, "NoSuchKey"))(asked)

    with scripted(tmp_path, answer) as script, pytest.raises(StoreUnreachable, match="is not there"):
        S3Store(script.place).put_bytes("a/b", b"some")


@pytest.mark.parametrize("status", [200, 404])
def test_what_does_not_speak_s3_is_told(tmp_path: Path, status: int) -> None:
    """S8: an endpoint that is somebody's web page."""
    page = b"<html><body>Welcome</body>"
    with (
        scripted(tmp_path, lambda asked: send(asked, status, page, content_type="text/html")) as script,
        pytest.raises(StoreError) as told,
    ):
        ask_store(S3Store(script.place))
    assert told.value.fix


def test_an_answer_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    """S3, V13: half an object is never taken for one, and one broken answer is no failure."""
    content = b"some bytes" * 1000
    with scripted(tmp_path, says(500, "")) as script:

        def second_time(asked: BaseHTTPRequestHandler) -> None:
            half = len(script.asked) % 2
            send(asked, 200, content[:4000] if half else content, length=len(content))

        script.answer = second_time
        store = S3Store(script.place)
        assert store.read_bytes("a") == content
        assert store.fetch("a", tmp_path, sha256(content)).read_bytes() == content
        assert len(script.asked) == 4
        script.answer = lambda asked: send(asked, 200, content[:4000], length=len(content))
        with pytest.raises(StoreUnreachable, match="does not answer"):
            store.fetch("a", tmp_path / "scratch", sha256(content))
    assert not any(path.is_file() for path in (tmp_path / "scratch").rglob("*"))


def test_a_checksum_that_lies_is_found(tmp_path: Path) -> None:
    """V13, S8: a server that keeps other bytes than it was sent, and one that sends others than it keeps."""

    def damages(asked: BaseHTTPRequestHandler) -> None:
        if asked.command == "HEAD":
            send(asked, 404, b"")
        elif asked.command in {"PUT", "DELETE"}:
            send(asked, 200, b"")
        else:
            send(asked, 200, b"sone", x_amz_checksum_sha256=checksum_of(b"some"))

    with scripted(tmp_path, damages) as script:
        store = S3Store(script.place)
        with pytest.raises(ChecksumMismatch, match="a/b"):
            store.put_bytes("a/b", b"some")
        assert [line.split()[0] for line in script.asked] == ["HEAD", "PUT", "GET", "DELETE"], "the damaged one is left"
        with pytest.raises(ChecksumMismatch, match="a/b"):
            store.read_bytes("a/b")
        with pytest.raises(ChecksumMismatch, match="a/b"):
            store.fetch("a/b", tmp_path, sha256(b"some"))


@pytest.mark.usefixtures("impatient")
def test_bytes_that_change_on_their_way_are_refused_by_the_server(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """V13: in one piece and in parts: the server compares what comes with the checksum, and keeps nothing."""
    monkeypatch.setattr(s3_parts, "_PART_BYTES", 5 << 20)
    store = S3Store(seaweed.place())
    client = s3_client.s3_client(store._place)
    sent = hashlib.sha256(b"some").digest()
    monkeypatch.setattr(s3_parts, "checksum_of", lambda _: checksum_of(sent))
    large = tmp_path / "large"
    large.write_bytes(b"x" * ((5 << 20) + 1))
    with pytest.raises(ChecksumMismatch, match="other bytes than were sent"):
        store.put_file("a/large", large)

    def flip(params: dict[str, object], **_: object) -> None:
        params["body"] = b"sone"

    client.meta.events.register("before-call.s3.PutObject", flip)
    with pytest.raises(ChecksumMismatch, match="other bytes than were sent"):
        store.put_bytes("a/small", b"some")
    assert list(store.list("")) == []
    assert store.sweep_unfinished(2e9) == 0


def test_a_url_that_is_no_store_is_told() -> None:
    """S8."""
    for url in ("s3://Not_A_Bucket/x", "s3://central?endpoint=nowhere", "ftp://host/x"):
        with pytest.raises(StoreError) as told:
            open_store(url)
        assert told.value.fix
