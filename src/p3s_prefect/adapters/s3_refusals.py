"""What servers that speak S3 refuse, what it means, and what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from p3s_prefect.adapters.s3_away import AWAY_SERVERS
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, StoreDisturbed, StoreError, StoreUnreachable

_GIVE_KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for the station, its pilots and whoever reads."
)
_CORRECT_ENDPOINT = (
    "Start the server, or correct the `endpoint` of the store or stream; what was asked for is tried again."
)
_DAMAGED = "The object was damaged after it was published; reprocess what it was made from in a new pass."
_RIGHTS = "The key needs the rights to list the bucket, and to read, write and delete its objects."
_NO_ANSWER = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
_NO_KEYS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.TokenRetrievalError,
    boto.MetadataRetrievalError,
)
_NO_BUCKET = (
    "there is no bucket {place.bucket} at {place.server}",
    "Make the bucket, or correct the `url` of the store, or the `bucket` of the stream.",
)
_WRONG_KEY = (
    "{place.server} does not know the access key",
    "Correct AWS_ACCESS_KEY_ID, or the file that `credentials` names.",
)
_WRONG_SECRET = (
    "{place.server} does not accept the secret key",
    "Correct AWS_SECRET_ACCESS_KEY, or the file that `credentials` names.",
)
_EXPIRED = ("the session at {place.server} has ended", "Renew the token (AWS_SESSION_TOKEN).")
_FORBIDDEN = ("{where} may not be used with this key", _RIGHTS)
_REGION = (
    "{place.server} has {place.bucket} in another region",
    "Write the bucket's region into the `region` of the store or stream.",
)
_CLOCK = ("{place.server} and this machine have different times", "Set this machine's clock.")
_FULL = ("{place.server} has no room left for {where}", "Make room, or raise its quota.")
_SENT_WRONG = (
    "{where} reached {place.server} with other bytes than were sent",
    "It is sent again; look at the network.",
)
_REFUSALS = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NO_BUCKET,
    "InvalidAccessKeyId": _WRONG_KEY,
    "InvalidClientTokenId": _WRONG_KEY,
    "SignatureDoesNotMatch": _WRONG_SECRET,
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "RequestTimeTooSkewed": _CLOCK,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "507": _FULL,
    "BadDigest": _SENT_WRONG,
    "XAmzContentSHA256Mismatch": _SENT_WRONG,
    "XAmzContentChecksumMismatch": _SENT_WRONG,
}
_DISTURBED_FROM = 500
# What stands before a server says so, or the server that it is overloaded. Others may be about one object.
_SERVER_GONE = {502, 503, 504}


@contextlib.contextmanager
def asking(place: BucketPlace, key: str | None = None) -> Iterator[None]:
    """Around requests: as `preparing`, and it is noted whether the server answers."""
    with preparing(place, key):
        try:
            yield
        except (boto.BotoCoreError, boto.ClientError) as error:
            if isinstance(error, boto.ClientError):
                _note(place, _status(error))
            elif isinstance(error, _NO_ANSWER):
                AWAY_SERVERS.note(place, answers=False)
            raise
        AWAY_SERVERS.note(place, answers=True)


@contextlib.contextmanager
def preparing(place: BucketPlace, key: str | None = None) -> Iterator[None]:
    """Turns what boto3 raises into errors of the store, about this object or about the whole place."""
    try:
        yield
    except (boto.BotoCoreError, boto.ClientError, ResponseParserError) as error:
        raise _store_error(error, place, key) from error


def code_of(error: Exception) -> str:
    """The server's word for its refusal, such as NoSuchKey; empty if it is none of the server's."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


# --- inside ---------------------------------------------------------------------------------------------------------


def _store_error(error: Exception, place: BucketPlace, key: str | None = None) -> StoreError:
    """What a refusal means: its kind, its reason, and what to do."""
    where = f"{place.address} at {place.server}" if key is None else f"{key} in {place.address}"
    if isinstance(error, boto.ClientError):
        return _refusal(error, place, where)
    if isinstance(error, boto.FlexibleChecksumError):
        return ChecksumMismatch(f"{where} came with other bytes than its checksum says", fix=_DAMAGED)
    if isinstance(error, _NO_KEYS):
        return StoreError(f"there are no usable keys for {where}: {error}", fix=_GIVE_KEYS)
    if isinstance(error, ResponseParserError):
        return StoreError(f"what answers at {place.server} does not speak S3", fix=_CORRECT_ENDPOINT)
    if isinstance(error, _NO_ANSWER):
        return StoreUnreachable(f"the store does not answer ({where}): {_short(error)}", fix=_CORRECT_ENDPOINT)
    return StoreError(
        f"{where} cannot be asked for: {_short(error)}", fix="Correct the store or the stream in the experiment file."
    )


def _note(place: BucketPlace, status: int) -> None:
    # What may be about one object tells neither that a server is away nor that it is back.
    if status in _SERVER_GONE or status < _DISTURBED_FROM:
        AWAY_SERVERS.note(place, answers=status not in _SERVER_GONE)


def _refusal(error: boto.ClientError, place: BucketPlace, where: str) -> StoreError:
    code, status = code_of(error), _status(error)
    if code in {"NoSuchKey", "404"}:
        return ObjectMissing(
            f"there is no object {where}", fix="It was never published, or was removed from the store."
        )
    if code in _REFUSALS:
        what, fix = (text.format(place=place, where=where) for text in _REFUSALS[code])
        kind = ChecksumMismatch if _REFUSALS[code] is _SENT_WRONG else StoreError
        return kind(what, fix=fix)
    said = f"{code}: {_short(error.response.get('Error', {}).get('Message', ''))}"
    is_gone = status in _SERVER_GONE or code in {"SlowDown", "Throttling", "RequestTimeout"}
    if is_gone or status >= _DISTURBED_FROM:
        # One that was started again answers so for a moment.
        unreachable = StoreUnreachable if is_gone or AWAY_SERVERS.is_away(place) else StoreDisturbed
        fix = "Look at the server's own log; what was asked for is tried again."
        return unreachable(f"{place.server} cannot serve {where} now ({said})", fix=fix)
    return StoreError(f"{place.server} refuses {where} ({said})", fix="Look at the server's own log.")


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _short(text: object) -> str:
    return " ".join(str(text).split())[:200]
