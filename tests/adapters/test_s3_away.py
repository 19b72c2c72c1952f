"""That a server does not answer is remembered by the process, for those who have another way."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from s3_servers import SeaweedServer
from scripted_s3 import says, scripted, send

from p3s_prefect.adapters.s3_away import _REMEMBERED_S, AWAY_SERVERS, AwayServers
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_parts import _PART_BYTES
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import StoreDisturbed, StoreError, StoreUnreachable

PLACE = BucketPlace(bucket="central", endpoint="http://127.0.0.1:1")


class _Time:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_gave_no_answer_is_away_for_a_while_and_asked_in_haste_until_it_answers() -> None:
    """P13: whoever has another way takes it at once, and comes back within seconds."""
    time = _Time()
    known = AwayServers(time)
    assert not known.is_away(PLACE)
    assert not known.was_away(PLACE)
    known.note(PLACE, answers=False)
    time.now_s += _REMEMBERED_S - 0.1
    assert known.is_away(PLACE)
    time.now_s += 0.2
    assert not known.is_away(PLACE)
    assert known.was_away(PLACE)
    known.note(PLACE, answers=False)
    assert known.is_away(PLACE)
    known.note(PLACE, answers=True)
    assert not known.is_away(PLACE)
    assert not known.was_away(PLACE)


def test_all_buckets_of_a_server_are_away_together_and_other_servers_are_not() -> None:
    known = AwayServers(_Time())
    known.note(PLACE, answers=False)
    assert known.is_away(replace(PLACE, bucket="raw-data", prefix="camera"))
    assert not known.is_away(replace(PLACE, endpoint="http://127.0.0.1:2"))
    assert not known.is_away(replace(PLACE, endpoint=None))


@pytest.mark.sockets
def test_a_real_server_that_is_gone_is_noted_and_asked_once_until_it_is_back(tmp_path: Path) -> None:
    """P13."""
    with closing(SeaweedServer(tmp_path)) as server:
        server.start()
        store = S3Store(server.place())
        place = store._place
        store.put_bytes("a/b", b"some")
        patient = s3_client(place)
        server.kill()
        with pytest.raises(StoreUnreachable):
            store.read_bytes("a/b")
        assert AWAY_SERVERS.is_away(place)
        hasty = s3_client(place)
        assert hasty.meta.config.retries["total_max_attempts"] == 1
        assert hasty.meta.config.connect_timeout < patient.meta.config.connect_timeout
        assert hasty.meta.config.read_timeout < patient.meta.config.read_timeout
        server.start()
        assert list(store.list("a/"))
        assert not AWAY_SERVERS.was_away(place)
        assert s3_client(place) is patient


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("status", "code", "is_away"),
    [
        (503, "SlowDown", True),
        (502, "BadGateway", True),
        (504, "GatewayTimeout", True),
        # These may be about one object, and say nothing of the others.
        (500, "InternalError", False),
        (403, "AccessDenied", False),
    ],
)
def test_an_answer_about_one_object_does_not_make_a_server_away(
    status: int, code: str, is_away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p3s_prefect.adapters.s3_client._ATTEMPTS", 1)
    with scripted(tmp_path, says(status, code)) as server:
        with pytest.raises(StoreError):
            S3Store(server.place).read_bytes("a/b")
        assert AWAY_SERVERS.is_away(server.place) == is_away


@pytest.mark.sockets
@pytest.mark.parametrize("size", [1, _PART_BYTES], ids=["whole", "in parts"])
def test_what_a_server_answers_to_a_write_is_noted_like_any_other_answer(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: it looks first, which the server grants; what it says to the write itself counts."""
    monkeypatch.setattr("p3s_prefect.adapters.s3_client._ATTEMPTS", 1)
    refusal = says(503, "SlowDown")

    def answer(asked: BaseHTTPRequestHandler) -> None:
        upload = "uploadId" in asked.path
        if asked.command == "HEAD":
            says(404, "NoSuchKey")(asked)
        elif asked.command == "POST" and not upload:
            send(asked, 200, b"<R><UploadId>1</UploadId></R>")
        elif asked.command == "PUT" and upload:
            send(asked, 200, b"", ETag="part")
        elif asked.command == "DELETE":
            send(asked, 204, b"")
        else:
            refusal(asked)

    path = tmp_path / "object"
    path.write_bytes(bytes(size))
    with scripted(tmp_path, answer) as server:
        store = S3Store(server.place)
        with pytest.raises(StoreUnreachable):
            store.put_file("a/b", path)
        assert AWAY_SERVERS.is_away(server.place)

        def refusal(asked: BaseHTTPRequestHandler) -> None:
            # What came before has told that it answers; only this answer may tell it now.
            AWAY_SERVERS.note(server.place, answers=False)
            says(403, "AccessDenied")(asked)

        with pytest.raises(StoreError, match="may not be used"):
            store.put_file("a/b", path)
        assert not AWAY_SERVERS.was_away(server.place)


@pytest.mark.sockets
def test_an_answer_about_one_object_does_not_tell_that_a_server_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: one that was started again cannot serve its objects for a moment, which is no object's own trouble."""
    monkeypatch.setattr("p3s_prefect.adapters.s3_client._ATTEMPTS", 1)
    with scripted(tmp_path, says(500, "InternalError")) as server:
        store = S3Store(server.place)
        for is_away in (True, False):
            if is_away:
                AWAY_SERVERS.note(server.place, answers=False)
            else:
                monkeypatch.setattr("p3s_prefect.adapters.s3_away._REMEMBERED_S", 0.0)
            with pytest.raises(StoreUnreachable) as told:
                store.read_bytes("a/b")
            assert isinstance(told.value, StoreDisturbed) != is_away
            assert AWAY_SERVERS.was_away(server.place)
        server.answer = says(404, "NoSuchKey")
        with pytest.raises(StoreError):
            store.read_bytes("a/b")
        assert not AWAY_SERVERS.was_away(server.place)
