"""An S3 server of a home's own, for those who want to try the store in a bucket: `p3s up --store s3`."""

from __future__ import annotations

import json
import time

from botocore.exceptions import ClientError

from p3s_prefect.adapters import s3_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.own_place import OwnServer
from p3s_prefect.adapters.programs import Program
from p3s_prefect.adapters.s3_client import keys_in, s3_client
from p3s_prefect.adapters.s3_refusals import asking, code_of
from p3s_prefect.core.errors import ServiceError, StoreUnreachable
from p3s_prefect.core.experiment import Experiment

_USUAL_PORT = 8333
# It takes 4 s to start, and several times as long on a machine that is busy with starting the rest.
_START_S = 60.0
_ASK_AGAIN_S = 0.2
# Told to end, it waits for its own connections, in vain, for 15 s; killed, it loses nothing that it has confirmed.
_STOP_S = 3
_OURS_ALREADY = {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}


def choose_own_store(home: Home, experiment: Experiment) -> None:
    """From now on this home keeps its results in a server of its own.

    Raises:
        ServiceError: the server is not installed, or the results are elsewhere already.
    """
    own = OwnServer(home.path)
    if own.address_file.exists():
        return
    s3_server.program()
    if experiment.store.url is not None:
        raise ServiceError(
            f"the experiment file has its store in {experiment.store.url}",
            fix="Leave out `--store s3`; or take `store.url` out of the file, if nothing was kept there yet.",
        )
    if next(home.store(experiment).list("runs/"), None) is not None:
        raise ServiceError(
            f"the results of this home are in {home.store_url(experiment)} already",
            fix="Leave out `--store s3`, or try it in another home: `p3s init`.",
        )
    _note_port(own, _USUAL_PORT)


def own_store_programs(home: Home) -> list[Program]:
    """The server, if this home has one, on a free port."""
    own = OwnServer(home.path)
    if (place := own.place()) is None:
        return []
    port = free_port(int(str(place.endpoint).rpartition(":")[2]))
    _note_port(own, port)
    own.data.mkdir(parents=True, exist_ok=True)
    # Kept, as a notebook may have them too.
    keys = keys_in(own.credentials) if own.credentials.exists() else s3_server.new_keys()
    s3_server.write_identities(own.config, keys)
    s3_server.write_credentials(own.credentials, keys)
    command = s3_server.command(own.data, own.config, port)
    return [Program(name="store", command=command, order=5, stop_wait_s=_STOP_S, settles_s=5)]


def make_ready(home: Home) -> None:
    """Waits until the home's own server has its bucket; returns at once where there is no such server.

    Raises:
        StoreError: the server does not come up, or refuses.
    """
    place = OwnServer(home.path).place()
    until = time.monotonic() + _START_S
    while place is not None:
        try:
            with asking(place):
                try:
                    s3_client(place).create_bucket(Bucket=place.bucket)
                except ClientError as error:
                    if code_of(error) not in _OURS_ALREADY:
                        raise
            return
        except StoreUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(_ASK_AGAIN_S)


def _note_port(own: OwnServer, port: int) -> None:
    own.address_file.parent.mkdir(parents=True, exist_ok=True)
    hidden = own.address_file.with_suffix(".new")
    hidden.write_text(json.dumps({"port": port}))
    hidden.replace(own.address_file)
