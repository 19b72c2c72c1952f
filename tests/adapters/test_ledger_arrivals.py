"""Taking arrivals (P2), closing groups (P22), and what the stages of a group then read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random

import pytest
from builders import (
    DAY,
    NOW,
    QUICK,
    arrival,
    collections,
    contents,
    intake,
    manifest,
    pipeline,
    sha256,
    take,
    take_and_start,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger import arrivals, execution, groups, inputs, schema, views
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.admission import admit_group
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Format, Pipeline
from p3s_prefect.core.ports import Refusal
from p3s_prefect.core.records import Arrival, Identity, SubJobFact, Transition, Verdict
from p3s_prefect.core.states import StageState
from p3s_prefect.core.wiring import external_inputs

TOTALS = pipeline({"quick": [], "totals": ["quick"]}, per_group=["totals"])
FORMATS = {"raw": Format.FITS}


# --- P2: a shuffled stream of hints ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hint:
    """A file was written, touched or read, or was told of: once more, or not at all."""

    subrun: int
    copy: bool
    content: bytes
    mtime_ns: int
    told: bool
    read: bool


HINTS = st.lists(
    st.builds(
        Hint,
        subrun=st.integers(0, 2),
        copy=st.booleans(),
        content=st.sampled_from([b"first", b"other", b"longer one"]),
        mtime_ns=st.integers(1, 3),
        told=st.booleans(),
        read=st.booleans(),
    ),
    min_size=1,
    max_size=14,
)


@dataclass
class Watched:
    """A watched directory, and what takes its files as the station does."""

    ledger: Ledger
    files: dict[str, Arrival] = field(default_factory=dict)
    content: dict[Identity, bytes] = field(default_factory=dict)
    told: set[Identity] = field(default_factory=set)
    taken: dict[DataId, bytes] = field(default_factory=dict)
    known: set[DataId] = field(default_factory=set)
    """Units of which somebody has read the bytes."""

    def write(self, hint: Hint) -> Arrival:
        seen = arrival(hint.subrun, content=hint.content, mtime_ns=hint.mtime_ns)
        if hint.copy:
            identity = replace(seen.identity, key=f"again/{seen.identity.key}")
            seen = replace(seen, identity=identity, path=f"/watched/{identity.key}")
        if self.content.setdefault(seen.identity, hint.content) == hint.content:
            # Where size and time are the same too, nobody could tell another content apart.
            self.files[seen.path] = seen
        return self.files[seen.path]

    def tell(self, seen: Arrival) -> None:
        content = self.content[seen.identity]
        with self.ledger.transaction() as connection:
            taken = take(connection, seen)
            if taken.rival is not None:
                at_hand = self.files.get(taken.rival.path)
                same = at_hand is not None and at_hand.identity == taken.rival.identity
                theirs = sha256(self.content[taken.rival.identity]) if same else None
                compared = replace(taken.rival, sha256=theirs, is_gone=at_hand is None)
                taken = take(connection, replace(seen, sha256=sha256(content)), compared=compared)
        self._check(seen, content, taken.verdict)
        self.told.add(seen.identity)

    def _check(self, seen: Arrival, content: bytes, verdict: Verdict | None) -> None:
        if seen.identity in self.told:
            assert verdict is None
        elif seen.data_id not in self.taken:
            assert verdict is Verdict.TAKEN
            self.taken[seen.data_id] = content
        elif verdict is Verdict.SAME:
            if seen.data_id not in self.known:
                # In the place of what nobody had read, with as many bytes: these are the unit's now.
                assert len(content) == len(self.taken[seen.data_id])
                self.taken[seen.data_id] = content
                self.known.add(seen.data_id)
            assert content == self.taken[seen.data_id]
        else:
            assert verdict is Verdict.CONFLICT

    def read(self, data_id: DataId) -> None:
        """A pilot has run the unit: its checksum is known from now on."""
        with self.ledger.transaction() as connection:
            for sub_job in execution.open_sub_jobs(connection):
                if sub_job.data_id == data_id:
                    opened = execution.start(connection, sub_job.stages[0].id, NOW)
                    execution.publish(connection, manifest(opened, read=self.taken[data_id]), NOW)
        self.known.add(data_id)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hints=HINTS, order=st.randoms(use_true_random=False))
def test_each_identity_is_settled_once_and_each_unit_is_taken_once(
    new_ledger: Callable[[], Ledger], hints: list[Hint], order: Random
) -> None:
    """P2: whatever the order of hints, with losses, repetitions, touched, copied and replaced files."""
    watched = Watched(new_ledger())
    for hint in hints:
        seen = watched.write(hint)
        if hint.told:
            watched.tell(seen)
        if hint.read and seen.data_id in watched.taken:
            watched.read(seen.data_id)
    listing = list(watched.files.values())
    order.shuffle(listing)
    for seen in [*listing, *listing]:
        watched.tell(seen)
    with watched.ledger.reading() as connection:
        rows = connection.execute(select(schema.arrival)).all()
        units = connection.scalars(select(schema.sub_job.c.data_id)).all()
    assert Counter(Identity(key=row.key, size=row.size, mtime_ns=row.mtime_ns) for row in rows) == Counter(watched.told)
    assert {seen.identity for seen in listing} <= watched.told
    assert Counter(units) == Counter(str(data_id) for data_id in watched.taken)
    assert Counter(row.data_id for row in rows if row.verdict == "taken") == Counter(units)


def _in_bucket(subrun: int, content: bytes) -> Arrival:
    """The same key as that of `arrival`, as the bucket has it."""
    seen = arrival(subrun, content=content)
    return replace(seen, path=f"s3://night/{seen.identity.key}", identity=replace(seen.identity, etag="e"))


@pytest.mark.parametrize("first_in_bucket", [True, False])
@pytest.mark.parametrize(
    ("content", "rival", "is_gone", "verdict", "told"),
    [
        (b"raw", b"raw", False, Verdict.SAME, "the same bytes"),
        (b"war", b"raw", False, Verdict.CONFLICT, "other bytes"),
        (b"raw", None, True, Verdict.SAME, "is there no more"),
        (b"raw", None, False, Verdict.CONFLICT, "changed before its bytes were read"),
    ],
)
def test_bucket_and_buffer_have_the_same_unit(
    ledger: Ledger,
    first_in_bucket: bool,
    content: bytes,
    rival: bytes | None,
    is_gone: bool,
    verdict: Verdict,
    told: str,
) -> None:
    """P13, P2: it is one arrival, whichever place told it first, also where one of them has it no more.

    What has changed there is a conflict, as nobody can know any more what was taken.
    """
    one, other = arrival(1, content=b"raw"), _in_bucket(1, content)
    first, second = (other, one) if first_in_bucket else (one, other)
    with ledger.transaction() as connection:
        assert take(connection, first).verdict is Verdict.TAKEN
    taken = _settle(ledger, second, content=content, rival=rival, is_gone=is_gone)
    assert (taken.verdict, taken.sub_jobs) == (verdict, ())
    assert told in taken.reason
    with ledger.transaction() as connection:
        assert take(connection, second).verdict is None


def test_between_bucket_and_buffer_another_size_is_a_conflict_without_reading(ledger: Ledger) -> None:
    """P13: nobody reads the buffer to find out what is known."""
    with ledger.transaction() as connection:
        take(connection, arrival(1, content=b"raw"))
        taken = take(connection, _in_bucket(1, b"longer"))
    assert (taken.verdict, taken.rival) == (Verdict.CONFLICT, None)
    assert "other bytes" in taken.reason


def _settle(
    ledger: Ledger, seen: Arrival, *, content: bytes, rival: bytes | None, is_gone: bool = False
) -> arrivals.Taken:
    with ledger.transaction() as connection:
        found = take(connection, seen).rival
        assert found is not None
        known = found.sha256 if rival is None else sha256(rival)
        compared = replace(found, sha256=known, is_gone=is_gone)
        return take(connection, replace(seen, sha256=sha256(content)), compared=compared)


@pytest.mark.parametrize(
    ("again", "content", "verdict", "reason"),
    [
        ({"mtime_ns": 5}, b"raw", Verdict.SAME, "the same bytes as run00001_0001.fits"),
        ({"key": "again/run00001_0001.fits"}, b"raw", Verdict.SAME, "the same bytes as run00001_0001.fits"),
        ({"content": b"RAW"}, b"RAW", Verdict.CONFLICT, "other bytes than run00001_0001.fits"),
        ({"key": "again/run00001_0001.fits"}, b"RAW", Verdict.CONFLICT, "other bytes than run00001_0001.fits"),
    ],
)
def test_a_changed_identity_is_settled_by_the_checksum_that_a_pilot_has_found(
    ledger: Ledger, again: dict[str, object], content: bytes, verdict: Verdict, reason: str
) -> None:
    """P2: touched, copied, replaced in place and doubled with another content."""
    with ledger.transaction() as connection:
        opened = take_and_start(connection, 1)
        execution.publish(connection, manifest(opened), NOW)
    seen = arrival(1, **{"mtime_ns": 9, "content": content} | again)
    taken = _settle(ledger, seen, content=content, rival=None)
    assert taken.verdict is verdict
    assert reason in taken.reason
    assert taken.sub_jobs == ()
    with ledger.transaction() as connection:
        assert take(connection, seen) == arrivals.Taken()
        journal = connection.execute(select(schema.journal).where(schema.journal.c.kind == f"arrival.{verdict}")).all()
    assert [row.subject for row in journal] == ["run=1 subrun=1"]


def test_a_file_that_was_sent_again_before_it_was_read_is_the_units_from_then_on(ledger: Ledger) -> None:
    """P2: in its place, with as many bytes; what comes after that is compared with these."""
    with ledger.transaction() as connection:
        take(connection, arrival(1, content=b"raw"))
    again = _settle(ledger, arrival(1, mtime_ns=5, content=b"war"), content=b"war", rival=None)
    assert (again.verdict, "which nobody had begun to read" in again.reason) == (Verdict.SAME, True)
    with ledger.reading() as connection:
        (taken,) = connection.scalars(select(schema.arrival.c.sha256).where(schema.arrival.c.verdict == "taken"))
    assert taken == sha256(b"war")
    other = _settle(ledger, arrival(1, mtime_ns=6, content=b"raw"), content=b"raw", rival=None)
    assert (other.verdict, "other bytes" in other.reason) == (Verdict.CONFLICT, True)


def test_a_file_that_was_sent_again_while_somebody_may_read_it_is_a_conflict(ledger: Ledger) -> None:
    """P2, V13: an attempt was opened, and may have read the first bytes; another may not read others."""
    with ledger.transaction() as connection:
        take_and_start(connection, 1)
    again = _settle(ledger, arrival(1, mtime_ns=5), content=b"raw", rival=None)
    assert (again.verdict, "changed before its bytes were read" in again.reason) == (Verdict.CONFLICT, True)


@pytest.mark.parametrize("again", [{"content": b"longer"}, {"key": "again/run00001_0001.fits"}])
def test_a_file_that_was_replaced_before_it_was_read_is_a_conflict_that_says_so(
    ledger: Ledger, again: dict[str, object]
) -> None:
    """P2: nobody can know any more what the first bytes were, and these are others, or stand elsewhere."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
    taken = _settle(ledger, arrival(1, **{"mtime_ns": 5} | again), content=b"raw", rival=None)
    assert taken.verdict is Verdict.CONFLICT
    assert "changed before its bytes were read" in taken.reason


def test_what_to_do_about_a_conflict_depends_on_whether_the_first_bytes_are_known(ledger: Ledger) -> None:
    """P2, S8: what nobody has read does not count for anything yet, and can only be brought back."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
        take(connection, arrival(2))
    for number, first in ((1, None), (2, b"raw")):
        sent = _settle(ledger, arrival(number, mtime_ns=5, content=b"longer"), content=b"longer", rival=first)
        assert sent.verdict is Verdict.CONFLICT
    with ledger.reading() as connection:
        read, unread = views.arrivals(connection, verdicts=[Verdict.CONFLICT])
    assert unread.remedy.startswith("Nobody has read what came first: bring it back; send the new one under a name")
    assert read.remedy.startswith("The content that came first counts; send the new one under a name")


def test_a_refused_file_is_recorded_once(ledger: Ledger) -> None:
    """P2."""
    refusal = Refusal(stream="raw", key="ru n.fits", path="/w/ru n.fits", size=3, mtime_ns=7, reason="wrong name")
    with ledger.transaction() as connection:
        assert arrivals.refuse(connection, refusal, NOW)
        assert not arrivals.refuse(connection, refusal, NOW + 5)
        assert arrivals.refuse(connection, replace(refusal, mtime_ns=8), NOW + 5)
        rows = connection.execute(select(schema.arrival.c.verdict, schema.arrival.c.reason)).all()
        kinds = connection.scalars(select(schema.journal.c.kind)).all()
    assert rows == [("refused", "wrong name")] * 2
    assert kinds == ["arrival.refused"] * 2


def test_a_name_that_could_be_no_text_is_recorded_all_the_same(ledger: Ledger) -> None:
    """P2: control characters and quotes in a file name stay data."""
    name = "x'); DROP TABLE arrival;--\n\x01é.fits"
    refusal = Refusal(stream="raw", key=name, path=f"/w/{name}", size=3, mtime_ns=7, reason="wrong name")
    with ledger.transaction() as connection:
        assert arrivals.refuse(connection, refusal, NOW)
        assert arrivals.known(connection, "raw", [name]) == {Identity(key=name, size=3, mtime_ns=7)}


def test_a_listing_of_any_length_can_be_asked_for(ledger: Ledger) -> None:
    """P2, V19: two hours of arrivals at once."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
        keys = [f"run{number:06d}.fits" for number in range(260_000)]
        assert arrivals.known(connection, "raw", [*keys, "run00001_0001.fits"]) == {arrival(1).identity}


def test_a_unit_that_no_pipeline_wants_is_recorded_and_stays_out_of_the_account(ledger: Ledger) -> None:
    """P2, V7."""
    with ledger.transaction() as connection:
        taken = take(connection, arrival(1), {})
        assert taken.verdict is Verdict.IGNORED
        assert take(connection, arrival(1), {}) == arrivals.Taken()
        found = contents(connection)
    assert (found["sub_job"], found["data_group"]) == ([], [])
    assert len(found["arrival"]) == 1


def test_several_pipelines_take_a_unit_each_in_its_own_job(ledger: Ledger) -> None:
    """P2, B1."""
    pipelines = {"dqm": QUICK, "alerts": QUICK}
    with ledger.transaction() as connection:
        taken = [take(connection, arrival(subrun), pipelines) for subrun in range(3)]
        found = contents(connection)
    assert [sub_job.pipeline for unit in taken for sub_job in unit.sub_jobs] == ["dqm", "alerts"] * 3
    assert (len(found["job"]), len(found["production_pass"]), len(found["data_group"])) == (2, 2, 1)
    assert taken[-1].group is not None
    assert taken[-1].group.arrivals == 3


def test_a_group_keeps_the_day_on_which_it_opened(ledger: Ledger) -> None:
    """V23."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
        later = replace(intake(DataId.of(run=1, subrun=2), {"alerts": QUICK}), day=DAY + timedelta(days=1))
        arrivals.take(connection, arrival(2), later, collections("alerts"))
        names = connection.scalars(select(schema.run_collection.c.name)).all()
    assert set(names) == {"test/dqm/20270115/c0ffee", "test/alerts/20270115/c0ffee"}


# --- P22: groups ----------------------------------------------------------------------------------------------------


def _take(connection: Connection, subrun: int, found: Pipeline = TOTALS) -> arrivals.Taken:
    return take(connection, arrival(subrun), {"dqm": found})


def _close(connection: Connection, taken: arrivals.Taken, found: Pipeline = TOTALS) -> list[SubJobFact]:
    assert taken.group is not None
    return groups.close(connection, taken.group, "marker", {"dqm": admit_group("dqm", found)}, NOW)


def _publish(connection: Connection, fact: SubJobFact, made: str) -> execution.Attempt:
    run = next(stage for stage in fact.stages if stage.stage == made)
    opened = execution.start(connection, run.id, NOW)
    execution.publish(connection, manifest(opened, made=[made], run_id=f"e{opened.id}"), NOW)
    return opened


def _start_totals(connection: Connection, fact: SubJobFact) -> execution.Attempt:
    (run,) = fact.stages
    execution.apply(connection, [Transition(stage_run_id=run.id, old=StageState.WAITING, new=StageState.QUEUED)], NOW)
    return execution.start(connection, run.id, NOW)


def test_a_group_closes_once_with_a_sub_job_for_its_stages(ledger: Ledger) -> None:
    """P22."""
    with ledger.transaction() as connection:
        taken = _take(connection, 1)
        (totals,) = _close(connection, taken)
        assert _close(connection, taken) == []
        assert groups.open_groups(connection) == []
        assert [fact.id for fact in execution.open_sub_jobs(connection)] == [taken.sub_jobs[0].id, totals.id]
    assert (totals.per, str(totals.data_id), totals.pass_id) == ("group", "run=1", taken.sub_jobs[0].pass_id)
    assert [(stage.stage, stage.state.value) for stage in totals.stages] == [("totals", "waiting")]


def test_a_group_without_group_stages_only_closes(ledger: Ledger) -> None:
    """P22."""
    with ledger.transaction() as connection:
        assert _close(connection, _take(connection, 1, QUICK), QUICK) == []
        assert groups.open_groups(connection) == []


def test_a_group_that_is_one_unit_has_both_its_sub_jobs(ledger: Ledger) -> None:
    """P22: an instrument whose units are not taken in runs."""
    with ledger.transaction() as connection:
        seen = arrival(1)
        wanted = intake(seen.data_id, {"dqm": TOTALS}, group=seen.data_id)
        taken = arrivals.take(connection, seen, wanted, collections("dqm"))
        _publish(connection, taken.sub_jobs[0], "quick")
        (totals,) = _close(connection, taken)
        assert totals.data_id == taken.sub_jobs[0].data_id
        opened = _start_totals(connection, totals)
        wires = external_inputs(TOTALS, "totals")
        found = inputs.find(connection, opened, wires, FORMATS)
    assert [(file.dataset_type, file.is_gathered) for file in found] == [("raw", True)]


def test_a_late_unit_opens_a_new_pass_and_leaves_the_old_one_as_it_was(ledger: Ledger) -> None:
    """P22."""
    with ledger.transaction() as connection:
        first = _take(connection, 1)
        (totals,) = _close(connection, first)
        before = connection.execute(select(schema.sub_job).where(schema.sub_job.c.id <= totals.id)).all()
        late = _take(connection, 2)
        assert late.group is not None
        assert [group.id for group in groups.open_groups(connection)] == [late.group.id]
        (again,) = _close(connection, late)
        after = connection.execute(select(schema.sub_job).where(schema.sub_job.c.id <= totals.id)).all()
        passes = connection.execute(select(schema.production_pass).order_by(schema.production_pass.c.number)).all()
    assert before == after
    assert late.sub_jobs[0].pass_id == again.pass_id != totals.pass_id
    assert [(row.number, row.run_collection, row.is_open) for row in passes] == [
        (0, "test/dqm/20270115/c0ffee", False),
        (1, "test/dqm/20270115/c0ffee/pass1", False),
    ]


def _gathering() -> Pipeline:
    """The group stage reads what the unit stage makes, and what arrived."""
    found = pipeline({"quick": [], "totals": ["quick"]}, per_group=["totals"])
    step = found.stages["totals"].steps[0].model_copy(update={"inputs": {"made": "quick", "raw": "raw"}})
    stages = found.stages | {"totals": found.stages["totals"].model_copy(update={"steps": [step]})}
    return found.model_copy(update={"stages": stages})


def test_a_group_stage_reads_the_newest_dataset_of_each_unit_up_to_its_own_pass(ledger: Ledger) -> None:
    """P22, B2: also when the stage of the earlier pass is tried again after the late unit came."""
    found = _gathering()
    wires = external_inputs(found, "totals")
    with ledger.transaction() as connection:
        units = [_take(connection, subrun, found) for subrun in (10, 9, 2)]
        for unit in units[:2]:
            _publish(connection, unit.sub_jobs[0], "quick")
        (totals,) = _close(connection, units[0], found)
        late = _take(connection, 1, found)
        _publish(connection, late.sub_jobs[0], "quick")
        (again,) = _close(connection, late, found)
        read = {
            number: inputs.find(connection, _start_totals(connection, fact), wires, FORMATS)
            for number, fact in enumerate((totals, again))
        }
    gathered = {
        (number, kind): [file.data_id["subrun"] for file in files if file.dataset_type == kind]
        for number, files in read.items()
        for kind in ("quick", "raw")
    }
    assert gathered == {
        (0, "quick"): [9, 10],
        (0, "raw"): [2, 9, 10],
        (1, "quick"): [1, 9, 10],
        (1, "raw"): [1, 2, 9, 10],
    }
    assert all(file.is_gathered for files in read.values() for file in files)


def test_of_a_unit_that_was_made_again_only_the_newest_dataset_is_read(ledger: Ledger) -> None:
    """B2, P22: a unit of pass 0 that a later pass has made again."""
    found = _gathering()
    with ledger.transaction() as connection:
        first = _take(connection, 1, found)
        older = _publish(connection, first.sub_jobs[0], "quick")
        (totals,) = _close(connection, first, found)
        late = _take(connection, 2, found)
        # As a reprocessing of the first unit would add it to the new pass.
        same_arrival = connection.scalar(select(schema.sub_job.c.arrival_id).order_by(schema.sub_job.c.id))
        again = arrivals.add_sub_job(
            connection,
            late.sub_jobs[0].pass_id,
            intake(first.sub_jobs[0].data_id, {"dqm": found}).admissions[0],
            data_id=first.sub_jobs[0].data_id,
            group=first.sub_jobs[0].group,
            arrival_id=same_arrival,
            taken_at=NOW,
            arrived_at=NOW,
        )
        newer = _publish(connection, again, "quick")
        (second,) = _close(connection, late, found)
        wires = external_inputs(found, "totals")
        old = inputs.find(connection, _start_totals(connection, totals), wires, FORMATS)
        new = inputs.find(connection, _start_totals(connection, second), wires, FORMATS)
        shares = inputs.coverage(connection, execution.start(connection, late.sub_jobs[0].stages[0].id, NOW), {"quick"})
    assert [file.key for file in old if file.dataset_type == "quick"] == [f"{older.prefix}/e{older.id}/quick"]
    assert [file.key for file in new if file.dataset_type == "quick"] == [f"{newer.prefix}/e{newer.id}/quick"]
    assert [file.data_id["subrun"] for file in new if file.dataset_type == "raw"] == [1, 2]
    assert shares == {"done": 1, "arrived": 1}
