"""The experiment file's meaning: one frozen model for each thing that it declares.

The field docstrings are the reference that `p3s init` and the error messages quote. Reading the YAML, and turning
mistakes into errors with file, line and fix, is `p3s_prefect.core.experiment_file`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from posixpath import join
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from p3s_prefect.core.bucket_place import BucketPlace, checked_address, checked_endpoint, checked_region
from p3s_prefect.core.data_id import safe_name
from p3s_prefect.core.errors import BadName
from p3s_prefect.core.quantities import Size


def _checked(check: Callable[[str], str]) -> AfterValidator:
    def checked(text: str) -> str:
        try:
            return check(text)
        except BadName as error:
            raise ValueError(f"{error.what}. {error.fix}") from error

    return AfterValidator(checked)


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{text!r} is no time zone; write one such as UTC or America/Santiago") from error
    return text


Name = Annotated[str, _checked(safe_name)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=True, serialize_by_alias=True
    )


class Order(StrEnum):
    """Which of the waiting units of a pipeline goes first."""

    FRESHEST_FIRST = "freshest-first"
    EARLIEST_DEADLINE = "earliest-deadline"
    OLDEST_FIRST = "oldest-first"
    """By the time at which the data were taken."""
    FIRST_COME = "first-come"
    """By the time at which they arrived."""


class Format(StrEnum):
    """How a dataset is written; also what a Python payload gets and returns (see `core.payload`)."""

    NPZ = "npz"
    JSON = "json"
    FITS = "fits"
    PNG = "png"
    TEXT = "text"
    FILE = "file"


class Floor(_Model):
    """A share of some units that is let in however long the queue is."""

    when: dict[Name, int | str] = {}
    """Dimension values that must be equal, such as those of one detector part; empty matches every unit."""
    share: Share
    """At least this share of them, chosen at random as ever."""

    @property
    def units(self) -> str:
        """Whose floor it is: ``run=7 and part=3``, or ``all units``."""
        return " and ".join(f"{dimension}={value}" for dimension, value in self.when.items()) or "all units"


class WorkClass(_Model):
    """A class of work: pipelines that are ranked, limited and thinned in overload together."""

    priority: int = 0
    """Higher goes first, and is thinned last."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many of its stages run at once; more wait. Default: no limit."""
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What one stage in time is worth, beside other classes of the same priority: in overload the work that is worth
    most for each second of a slot is thinned last."""
    shed: bool = True
    """Whether it is thinned in overload. Without, its units wait, and expire at their deadlines."""
    floors: list[Floor] = []
    """Shares that overload does not touch. Where several match, the largest counts."""


class Breaker(_Model):
    """When a pipeline that keeps failing pauses itself."""

    window_s: Seconds = 600
    """Failures are counted over the last so many seconds."""
    failures: Annotated[int, Field(ge=1)] = 5
    """It pauses when at least this many stages failed in the window,"""
    share: Share = 0.5
    """and these were at least this share of those that ended in it."""
    canary_s: Seconds | None = 60
    """After so long one unit is let through; if it ends well, the pipeline goes on. ``null``: by command only."""


class Day(_Model):
    """When a processing day begins."""

    rolls_at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] = "00:00"
    """Wall-clock time at which the day rolls. An observatory writes 12:00, so that a night is one day."""
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Time zone of `rolls_at`."""


class Closing(_Model):
    """When a group is complete: whichever comes first."""

    marker: str | None = None
    """Name pattern of a file that closes its group, such as ``run{run:05d}.closed``."""
    count: Annotated[int, Field(ge=1)] | None = None
    """A group closes when this many of its units have arrived."""
    quiet_s: Seconds | None = None
    """A group closes when nothing of it has arrived for this long."""

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if self.marker is None and self.count is None and self.quiet_s is None:
            raise ValueError("a group must be able to close: give marker, count or quiet_s")
        return self


class Instrument(_Model):
    """What takes the data, and how they are named."""

    name: Name
    """The instrument's name; the first part of every run collection's name."""
    dimensions: Annotated[dict[Name, Literal["int", "text"]], Field(min_length=1)]
    """The dimensions that name a unit, in order, each int or text."""
    group: Annotated[list[Name], Field(min_length=1)]
    """The dimensions that name a group: the first ones of `dimensions`."""
    closing: Closing = Closing(quiet_s=60)
    """When a group is complete."""
    day: Day = Day()
    """When a processing day begins. A group keeps the day on which it opened."""

    @model_validator(mode="after")
    def _group_comes_first(self) -> Self:
        if list(self.dimensions)[: len(self.group)] != self.group:
            raise ValueError(f"group must be the first of the dimensions {', '.join(self.dimensions)}")
        return self


class DatasetType(_Model):
    """One kind of data."""

    format: Format
    """How it is written."""
    about: str = ""
    """What it holds, for people."""


class Step(_Model):
    """One program inside a stage."""

    name: Name
    """Its name, unique in the stage."""
    python: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """A Python payload as ``package.module:function``."""
    command: Annotated[list[str], Field(min_length=1)] | None = None
    """A program and its arguments. No shell reads it. A word that begins with ``./`` is a path below the home."""
    inputs: dict[Name, Name] = {}
    """Name of each input -> its dataset type."""
    outputs: dict[Name, Name] = {}
    """Name of each output -> its dataset type."""
    params: dict[Name, Any] = {}
    """Parameters, handed over as keyword arguments or, to a command, as JSON in P3S_PARAMS."""
    timeout_s: Seconds = 600
    """The step's process group is killed after this long."""

    @model_validator(mode="after")
    def _one_payload(self) -> Self:
        if (self.python is None) == (self.command is None):
            raise ValueError("a step is either `python: module:function` or `command: [program, argument, ...]`")
        return self


class Stage(_Model):
    """What is scheduled as one."""

    steps: Annotated[list[Step], Field(min_length=1)]
    """Its steps, in order; they hand files to each other without the store."""
    per: Literal["unit", "group"] = "unit"
    """`unit` runs for each unit; `group` runs once when the group has closed."""
    after: list[Name] = []
    """Stages that must be done first. A group stage waits for these stages of every unit."""
    priority: int | None = None
    """Higher goes first. Default: that of the pipeline."""
    prescale: Share = 1.0
    """Share of the units that get this stage, chosen by a hash of data id and seed, nested between stages."""
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """What it is worth in time, times its class's value: in overload, the stage that is worth least for each second
    of a slot is thinned first."""
    deadline_s: Seconds | None = None
    """Given up this long after the data were taken (a group stage: after the group closed)."""
    stop_at_deadline: bool = False
    """Whether a stage that is running at its deadline is killed. Default: it may finish."""
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    """How many more times a failed stage is tried. A lost pilot is not the stage's failure and is not counted."""
    backoff_s: Annotated[float, Field(ge=0, le=86_400)] = 1.0
    """Wait before the first retry; doubles with each, up to 64 times."""

    @model_validator(mode="after")
    def _step_names_once(self) -> Self:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError("two steps of a stage have the same name")
        return self


class Pipeline(_Model):
    """A named DAG of stages."""

    stages: Annotated[dict[Name, Stage], Field(min_length=1)]
    """Its stages by name."""
    work_class: Annotated[Name, Field(alias="class")] = "default"
    """Its class of work. ``default`` need not be declared."""
    priority: int | None = None
    """Higher goes first. Default: that of its class."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many of its stages run at once; more wait. Default: no limit."""
    order: Order = Order.FRESHEST_FIRST
    """Which waiting unit goes first."""
    freshest_in_overload: bool = True
    """Whether the freshest go first as long as units are thinned, whatever the order is otherwise."""
    breaker: Breaker | None = Breaker()
    """When it pauses itself; ``null`` never."""


class Rule(_Model):
    """One line of a stream's pipeline rules: the first that matches wins."""

    when: dict[Name, int | str] = {}
    """Dimension values that must be equal; empty matches everything."""
    pipelines: list[Name]
    """The pipelines to run; an empty list means that the unit is ignored, and recorded so."""


class Complete(_Model):
    """When a file is complete. Never a size or an age: neither proves it."""

    by: Literal["name", "marker", "manifest"] = "name"
    """`name`: it bears its final name (writers rename into place). `marker`: a file of the same name with `suffix`
    stands beside it. `manifest`: such a file holds the SHA-256 of its bytes, which are compared."""
    suffix: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9_.-]+$")] = ".ok"
    """Ending of the marker or manifest, added to the whole file name."""


class StreamBuffer(_Model):
    """What of a stream lies in the online buffer, and when it is taken from there."""

    directory: str
    """Directory of the stream's files, below that of the buffer; it has the keys that the bucket has below its
    prefix."""
    always: bool = False
    """Whether the stream is fed from the buffer always. Default: while the bucket cannot be reached."""


class Stream(_Model):
    """Where data arrive, and what is done with them."""

    directory: str | None = None
    """The watched directory, relative to the experiment's home. Its subdirectories are watched too."""
    bucket: Annotated[str, _checked(checked_address)] | None = None
    """A bucket that is watched instead: ``s3://bucket/prefix``, with all that is below."""
    endpoint: Annotated[str, _checked(checked_endpoint)] | None = None
    """The bucket's server, such as ``https://s3.site.org``. Default: Amazon's own."""
    region: Annotated[str, _checked(checked_region)] | None = None
    """The bucket's region. Default: what boto3 finds, else us-east-1."""
    credentials: str | None = None
    """Path of a file with the bucket's keys, in Amazon's format, on the machines of station and pilots; a relative one
    is relative to the experiment's home. Default: what boto3 finds."""
    buffer: StreamBuffer | None = None
    """Where the same files lie in the online buffer. Default: nowhere."""
    pattern: str
    """Name of a file with its dimensions, such as ``run{run:05d}_{subrun:04d}.fits``."""
    dataset_type: Name
    """What each file is."""
    exclude: list[str] = ["*.tmp", "*.part", ".*"]
    """Temporary names (globs), never read."""
    complete: Complete = Complete()
    """When a file is complete."""
    list_every_s: Seconds = 5.0
    """Period of the full listing, which finds what no notification told. Lengthened by itself so that listing takes
    at most a tenth of the time. In a bucket: period of looking for keys that sort after the last one."""
    reconcile_every_s: Seconds = 300.0
    """Period of the full listing of a bucket, which finds what came late and sorts low. Lengthened as well."""
    notify: bool = True
    """Whether notifications are used as hints: those of the file system, which do not work everywhere (such as on
    NFS), or those that a bucket's server sends to ``/api/notices`` of the station."""
    prescale: Share = 1.0
    """Share of the units that are processed at all."""
    rules: Annotated[list[Rule], Field(min_length=1)]
    """Which pipelines run: the first rule that matches wins."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.directory is not None and self.buffer is not None:
            raise ValueError(
                "the online buffer stands in for a bucket: give `bucket` instead of directory, or leave `buffer` out"
            )
        if (self.directory is None) == (self.bucket is None) and not self.is_buffered_always:
            raise ValueError(
                "a stream comes either from a `directory: incoming` or from a `bucket: s3://bucket/prefix`"
                " (or, with `buffer: {directory: ..., always: true}`, from the online buffer alone)"
            )
        if self.bucket is None and (self.endpoint or self.region or self.credentials):
            raise ValueError(
                "endpoint, region and credentials are those of a bucket: give `bucket` instead of directory"
            )
        return self

    @property
    def place(self) -> str | BucketPlace | None:
        """The directory, relative to the experiment's home, or the bucket; None where there is the buffer alone."""
        if self.bucket is None:
            return self.directory
        return BucketPlace.named(self.bucket, endpoint=self.endpoint, region=self.region, credentials=self.credentials)

    @property
    def is_buffered_always(self) -> bool:
        """Whether the stream is fed from the online buffer alone, whatever other places it has."""
        return self.buffer is not None and self.buffer.always

    @property
    def comes_from(self) -> str:
        """Directory, bucket or buffer, for people."""
        if self.buffer is not None and self.buffer.always:
            return f"{self.buffer.directory} in the online buffer"
        return str(self.directory or self.bucket)


class Store(_Model):
    """The central store: a directory, or a bucket."""

    directory: str | None = None
    """Directory of the store, relative to the experiment's home. Default: ``store``, where there is no `url`."""
    url: Annotated[str, _checked(checked_address)] | None = None
    """A bucket instead: ``s3://bucket/prefix``. The keys are those that boto3 finds, such as AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY in the environment; they never stand in this file."""
    endpoint: Annotated[str, _checked(checked_endpoint)] | None = None
    """The bucket's server, such as ``https://s3.site.org``. Default: Amazon's own."""
    region: Annotated[str, _checked(checked_region)] | None = None
    """The bucket's region. Default: what boto3 finds, else us-east-1."""
    sweep_after_s: Seconds = 3600
    """Objects that no publication names are removed when they are this old and no attempt is writing them."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.url is not None and self.directory is not None:
            raise ValueError("a store is either `directory: store` or `url: s3://bucket/prefix`")
        if self.url is None and (self.endpoint or self.region):
            raise ValueError("endpoint and region are those of a bucket: give `url: s3://bucket/prefix` too")
        return self

    @property
    def place(self) -> str | BucketPlace:
        """The directory, relative to the experiment's home, or the bucket."""
        if self.url is None:
            return "store" if self.directory is None else self.directory
        return BucketPlace.named(self.url, endpoint=self.endpoint, region=self.region)


class Buffer(_Model):
    """The online buffer: the DAQ's own disk, where data lie before and while they come to the bucket.

    It is only read, and never by more than these limits, as the DAQ writes there.
    """

    directory: str
    """Its directory, mounted where station and pilots run; a relative one is relative to the experiment's home."""
    max_reads: Annotated[int, Field(ge=1)] = 2
    """At most this many files are read at once, by all pilots and the station together."""
    bytes_per_s: Annotated[Size, Field(ge=1)] | None = None
    """At most this many bytes are read in a second, by all of them together, such as ``50 MB``. Default: no limit."""


# User, host or address in brackets, port, database, options.
_POSTGRESQL = r"postgresql\+psycopg://(\S+@)?(\[[0-9a-fA-F:.]+\]|[^\s/@?:\[\]]*)(:\d{1,5})?/[^\s/?@]+(\?\S*)?$"


class Ledger(_Model):
    """The database of record."""

    url: Annotated[str, Field(pattern=rf"^(sqlite:///|{_POSTGRESQL})", repr=False)] = "sqlite:///ledger.db"
    """SQLAlchemy URL: ``sqlite:///FILE``, relative to the experiment's home, or a database of a PostgreSQL server,
    ``postgresql+psycopg://USER@HOST/NAME``. Its password stands in PGPASSWORD, in ~/.pgpass, or in another variable:
    ``postgresql+psycopg://USER:${DB_PASSWORD}@HOST/NAME`` (percent-encoded)."""


class Pilots(_Model):
    """The slots that do the work."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    """Number of local pilots that `p3s up` starts; each has one slot."""
    address: str | None = None
    """Address of an existing Dask scheduler to use instead, such as ``tcp://10.0.0.1:8786``."""
    cache_bytes: Size = 2_000_000_000
    """What each machine keeps of a store that is not on it, for all of its pilots: never more than this, and what was
    not used for longest goes first. Such as ``50 GB``; 0 for none."""
    cache_directory: str | None = None
    """Where, as an absolute path on the pilots' machines; nobody else may write there. Default: ``p3s-cache-UID`` in
    the directory for temporary files."""
    waiting_bytes: Size = 10_000_000_000
    """How much of the outputs may wait on each machine, for all of its pilots, while a store that is not on it cannot
    be reached; what is more is made again later. Such as ``100 GB``; 0 for none."""
    waiting_directory: str | None = None
    """Where, as an absolute path on the pilots' machines that outlasts their restart; nobody else may write there.
    Default: ``/var/tmp/p3s-waiting-UID``."""


class Station(_Model):
    """The long-lived service of a site."""

    host: str = "127.0.0.1"
    """Where the page is served. Beyond loopback a token is required (P3S_TOKEN)."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8570
    """Port of the page; 0 takes a free one."""
    grace_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    """On SIGTERM, running stages get this long to finish; the rest go back to the queue."""
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 15.0
    """Another station may take over this long after the last sign of life."""


SITE_POOL = "p3s"
"""The work pool of a site, unless it is named otherwise; in overlays and prefect.yaml, whatever it is named."""


class Prefect(_Model):
    """What Prefect shows and controls. Data are processed with or without it."""

    enabled: bool = True
    """Whether what happens is recorded in Prefect, by services of their own."""
    api_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """The API of an existing Prefect server, such as ``http://prefect:4200/api``. Default: `p3s up` starts one."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 4200
    """Port of the server that `p3s up` starts. Where it is taken, and for 0, it takes a free one."""
    pool: Name = SITE_POOL
    """The work pool whose flow runs the agent takes. Experiments that share a server need one each."""
    record_units: Annotated[int, Field(ge=0, le=1000)] = 64
    """A group with more units than this is recorded by stage: one task run each, and one for each unit that failed."""
    pictures: tuple[str, ...] | None = None
    """Titles of the products whose latest pictures the record shows, where they are under 100 kB. Default: all."""


class Experiment(_Model):
    """Everything that one experiment file declares."""

    experiment: Name
    """The experiment's name."""
    seed: int = 0
    """Seed of the prescale's choice."""
    instrument: Instrument
    """What takes the data."""
    dataset_types: Annotated[dict[Name, DatasetType], Field(min_length=1)]
    """Kinds of data by name."""
    classes: dict[Name, WorkClass] = {}
    """Classes of work by name."""
    pipelines: Annotated[dict[Name, Pipeline], Field(min_length=1)]
    """Pipelines by name."""
    streams: Annotated[dict[Name, Stream], Field(min_length=1)]
    """Streams by name."""
    store: Store = Store()
    """The central store."""
    buffer: Buffer | None = None
    """The online buffer. Default: there is none."""
    ledger: Ledger = Ledger()
    """The database of record."""
    pilots: Pilots = Pilots()
    """The slots that do the work."""
    station: Station = Station()
    """The long-lived service."""
    prefect: Prefect = Prefect()
    """The record that people see in Prefect."""

    def buffer_directory(self, stream: Stream) -> str | None:
        """Where a stream's files lie in the online buffer, relative to the home; None if they do not."""
        if self.buffer is None or stream.buffer is None:
            return None
        return join(self.buffer.directory, stream.buffer.directory)

    def class_of(self, pipeline: Pipeline) -> WorkClass:
        """The class of a pipeline's work."""
        return self.classes.get(pipeline.work_class, WorkClass())

    def priority_of(self, pipeline: Pipeline, stage: Stage) -> int:
        """A stage's own priority, else its pipeline's, else its class's."""
        own = pipeline.priority if stage.priority is None else stage.priority
        return self.class_of(pipeline).priority if own is None else own
