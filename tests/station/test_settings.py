"""Every setting of the experiment file takes effect: the table says which test shows it.

A setting without a line in the table, or a line whose test is gone, fails here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel
from rich.console import Console
from sites import NewSite, declare, obey

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.cli.explain import as_json, explain
from p3s_prefect.core import experiment

pytestmark = pytest.mark.sockets

TESTS = Path(__file__).parents[1]
ARRIVALS = "station/test_station_arrivals.py"
BREAKER = "station/test_station_breaker.py"
BREAKER_RULES = "core/test_breaker.py"
BUCKET_SOURCE = "adapters/test_bucket_source.py"
BUFFER = "station/test_station_buffer.py"
BUFFER_LEASES = "adapters/test_buffer_leases.py"
BUCKETS = "station/test_station_buckets.py"
CONTROLLER = "core/test_controller.py"
CONTROLS = "station/test_station_controls.py"
COLLECTIONS = "station/test_station_collections.py"
GROUPS = "station/test_station_groups.py"
KILLS = "station/test_station_kills.py"
PILOTS = "station/test_station_pilots.py"
PREFECT = "adapters/test_prefect_server.py"
PROJECTOR = "agent/test_projector.py"
S3 = "station/test_station_s3.py"
SCHEDULING = "station/test_station_scheduling.py"
SETTINGS = "station/test_settings.py"
SOURCE = "adapters/test_directory_source.py"
STOP = "station/test_station_stop.py"
SUPERVISION = "station/test_supervision.py"
WAITING = "station/test_station_waiting_outputs.py"

SHOWN_BY = {
    "Breaker.canary_s": (BREAKER, "test_it_pauses_itself_others_go_on_and_a_canary_closes_it"),
    "Breaker.failures": (BREAKER, "test_it_pauses_itself_others_go_on_and_a_canary_closes_it"),
    "Breaker.share": (BREAKER, "test_few_failures_among_many_do_not_pause"),
    "Breaker.window_s": (BREAKER_RULES, "test_failures_of_long_ago_do_not_count"),
    "Buffer.bytes_per_s": (BUFFER_LEASES, "test_no_more_readers_and_bytes_than_allowed_over_all_workers"),
    "Buffer.directory": (
        BUFFER,
        "test_while_the_bucket_is_away_units_come_from_the_buffer",
    ),
    "Buffer.max_reads": (BUFFER_LEASES, "test_no_more_readers_and_bytes_than_allowed_over_all_workers"),
    "Closing.count": (GROUPS, "test_a_group_closes_by_count"),
    "Closing.marker": (GROUPS, "test_a_group_closes_by_its_marker"),
    "Closing.quiet_s": (GROUPS, "test_a_group_closes_by_quiet_time"),
    "Complete.by": (SOURCE, "test_a_manifest_must_fit"),
    "Complete.suffix": (SOURCE, "test_a_marker_makes_a_file_complete"),
    "DatasetType.about": (SETTINGS, "test_what_a_dataset_type_is_about_is_explained"),
    "DatasetType.format": (SETTINGS, "test_a_format_decides_what_a_payload_gets_and_gives"),
    "Day.rolls_at": (COLLECTIONS, "test_the_day_rolls_and_a_group_keeps_its_own"),
    "Day.zone": (COLLECTIONS, "test_the_day_rolls_and_a_group_keeps_its_own"),
    "Experiment.experiment": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Experiment.seed": (SCHEDULING, "test_prescales_choose_by_hash_and_are_stored"),
    "Floor.share": (SCHEDULING, "test_overload_leaves_out_at_random_and_says_with_which_probability"),
    "Floor.when": (SCHEDULING, "test_overload_leaves_out_at_random_and_says_with_which_probability"),
    "Instrument.dimensions": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Instrument.group": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Instrument.name": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Ledger.url": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Pilots.address": (SUPERVISION, "test_an_existing_cluster_is_used_instead"),
    "Pilots.cache_bytes": (S3, "test_results_go_to_a_bucket_and_wait_for_it"),
    "Pilots.cache_directory": (S3, "test_results_go_to_a_bucket_and_wait_for_it"),
    "Pilots.waiting_bytes": (WAITING, "test_without_room_to_wait_units_wait_in_the_queue_and_none_fails"),
    "Pilots.waiting_directory": (WAITING, "test_results_wait_with_the_pilots_and_other_units_go_on"),
    "Pilots.workers": (SUPERVISION, "test_an_existing_cluster_is_used_instead"),
    "Pipeline.freshest_in_overload": (CONTROLLER, "test_freshest_first_in_overload_keeps_nothing_waiting_for_long"),
    "Pipeline.limit": (SCHEDULING, "test_a_limit_queues_and_does_not_discard"),
    "Pipeline.order": (SCHEDULING, "test_the_order_is_the_pipelines_choice"),
    "Pipeline.priority": (SCHEDULING, "test_work_is_bound_to_a_pilot_only_when_a_slot_is_free"),
    "Pipeline.work_class": (SCHEDULING, "test_a_class_has_a_priority_and_a_limit"),
    "Prefect.api_url": (PREFECT, "test_a_server_that_exists_is_used_instead"),
    "Prefect.enabled": (PREFECT, "test_without_prefect_nothing_of_it_is_started"),
    "Prefect.pictures": (PROJECTOR, "test_only_pictures_that_are_named_are_shown"),
    "Prefect.pool": (CONTROLS, "test_a_paused_queue_stops_its_class_within_two_seconds"),
    "Prefect.port": (PREFECT, "test_the_server_has_its_port_and_the_page_asks_there"),
    "Prefect.record_units": (PROJECTOR, "test_a_group_that_becomes_large_is_folded"),
    "Rule.pipelines": (SETTINGS, "test_the_first_rule_that_matches_wins"),
    "Rule.when": (SETTINGS, "test_the_first_rule_that_matches_wins"),
    "Stage.after": (SCHEDULING, "test_a_failing_branch_of_a_diamond_blocks_its_descendants_only"),
    "Stage.backoff_s": (SCHEDULING, "test_a_failed_stage_is_tried_again_after_a_while"),
    "Stage.deadline_s": (SCHEDULING, "test_a_late_unit_is_expired_before_it_takes_a_slot"),
    "Stage.per": (GROUPS, "test_a_group_closes_by_count"),
    "Stage.prescale": (SCHEDULING, "test_prescales_choose_by_hash_and_are_stored"),
    "Stage.priority": (SCHEDULING, "test_a_stage_per_group_has_the_priority_that_it_names"),
    "Stage.retries": (SCHEDULING, "test_a_failed_stage_is_tried_again_after_a_while"),
    "Stage.stop_at_deadline": (SCHEDULING, "test_a_stage_is_killed_at_its_deadline_where_it_says_so"),
    "Stage.value": (CONTROLLER, "test_a_later_stage_that_is_worth_less_is_thinned_first"),
    "Station.grace_s": (STOP, "test_sigterm_gives_what_runs_its_grace_and_the_rest_back"),
    "Station.host": (SETTINGS, "test_the_page_is_served_on_its_address_alone"),
    "Station.lease_s": (KILLS, "test_a_station_that_was_replaced_stops"),
    "Station.port": (SUPERVISION, "test_a_port_in_use_is_a_clear_error"),
    "Step.command": (ARRIVALS, "test_a_shell_script_is_a_step"),
    "Step.inputs": (ARRIVALS, "test_a_shell_script_is_a_step"),
    "Step.name": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Step.outputs": (ARRIVALS, "test_a_shell_script_is_a_step"),
    "Step.params": (SETTINGS, "test_a_format_decides_what_a_payload_gets_and_gives"),
    "Step.python": (SETTINGS, "test_a_format_decides_what_a_payload_gets_and_gives"),
    "Step.timeout_s": (SCHEDULING, "test_a_step_is_killed_at_its_limit_and_the_slot_is_clean"),
    "Store.directory": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Store.endpoint": (S3, "test_results_go_to_a_bucket_and_wait_for_it"),
    "Store.region": ("adapters/test_s3_refusals.py", "test_a_region_is_that_of_the_client"),
    "Store.sweep_after_s": (KILLS, "test_orphans_are_swept_and_logs_of_failures_kept"),
    "Store.url": (S3, "test_results_go_to_a_bucket_and_wait_for_it"),
    "Stream.bucket": (BUCKETS, "test_objects_that_arrive_in_a_bucket_are_processed"),
    "Stream.credentials": (BUCKETS, "test_objects_that_arrive_in_a_bucket_are_processed"),
    "Stream.dataset_type": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Stream.directory": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Stream.endpoint": (BUCKETS, "test_objects_that_arrive_in_a_bucket_are_processed"),
    "Stream.exclude": (SOURCE, "test_temporary_names_are_never_read"),
    "Stream.list_every_s": (SOURCE, "test_the_period_grows_with_the_listing"),
    "Stream.notify": (SOURCE, "test_a_notification_is_faster_than_the_listing"),
    "Stream.pattern": (SETTINGS, "test_names_and_places_are_those_that_are_declared"),
    "Stream.prescale": (SCHEDULING, "test_prescales_choose_by_hash_and_are_stored"),
    "Stream.reconcile_every_s": (
        BUCKET_SOURCE,
        "test_the_tail_finds_new_keys_and_the_full_listing_those_that_sort_lower",
    ),
    "Stream.region": (BUCKETS, "test_the_region_is_the_one_that_requests_are_signed_for"),
    "StreamBuffer.always": (BUFFER, "test_a_stream_may_be_fed_from_the_buffer_always"),
    "StreamBuffer.directory": (
        BUFFER,
        "test_while_the_bucket_is_away_units_come_from_the_buffer",
    ),
    "WorkClass.limit": (SCHEDULING, "test_a_class_has_a_priority_and_a_limit"),
    "WorkClass.priority": (SCHEDULING, "test_a_class_has_a_priority_and_a_limit"),
    "WorkClass.shed": (SCHEDULING, "test_overload_leaves_out_at_random_and_says_with_which_probability"),
    "WorkClass.value": (CONTROLLER, "test_what_is_worth_least_for_its_time_is_thinned_first"),
}


def declared_settings() -> Iterator[str]:
    """Every field that is not itself a model, or made of models."""
    for model in vars(experiment).values():
        if isinstance(model, type) and issubclass(model, experiment._Model) and model is not experiment._Model:
            for name, field in model.model_fields.items():
                if not _holds_model(field.annotation):
                    yield f"{model.__name__}.{name}"


def _holds_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_model(part) for part in get_args(annotation))


def test_every_setting_has_its_test() -> None:
    """V18: no setting without a test that shows its effect, and says so."""
    assert sorted(declared_settings()) == sorted(SHOWN_BY)
    for setting, (file, name) in SHOWN_BY.items():
        tree = ast.parse((TESTS / file).read_text())
        found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in found, f"{setting}: {file} has no {name}"
        assert "V18" in (ast.get_docstring(found[name]) or ""), f"{setting}: {name} does not say that it is for it"


async def test_names_and_places_are_those_that_are_declared(new_site: NewSite) -> None:
    """V18: names of experiment, instrument, dimensions, group and steps; places of data, store and ledger."""
    declared = declare(
        {"quick": {"steps": [{**obey(), "name": "first-look", "inputs": {"raw": "frame"}}]}},
        stream={"directory": "from/daq", "pattern": "{night}.{exposure:06d}.dat", "dataset_type": "frame"},
        instrument={"name": "OtherCam", "dimensions": {"night": "text", "exposure": "int"}, "group": ["night"]},
        store={"directory": "kept"},
        ledger={"url": "sqlite:///books.db"},
        experiment="other",
    )
    declared["dataset_types"]["frame"] = declared["dataset_types"].pop("raw")
    site = new_site(declared)
    place = site.path / "from" / "daq"
    place.mkdir(parents=True)
    (place / "may-1.000007.dat").write_text("hello")
    async with site.running():
        await site.until_done(1)
    (row,) = site.rows(schema.dataset)
    assert row.data_id == "night=may-1 exposure=7"
    assert row.run_collection.startswith("OtherCam/dqm/")
    assert (site.path / "kept" / row.key).read_text() == "HELLO"
    assert (site.path / "books.db").exists()
    assert [group.data_id for group in site.rows(schema.data_group)] == ["night=may-1"]
    assert [lease.namespace for lease in site.rows(schema.lease)] == ["other"]
    assert [arrival.dataset_type for arrival in site.rows(schema.arrival)] == ["frame"]
    assert site.rows(schema.attempt)[0].steps[0]["step"] == "first-look"


async def test_the_page_is_served_on_its_address_alone(new_site: NewSite) -> None:
    """V18 (host): another address of the same machine is not answered."""
    site = new_site(declare(station={"host": "127.0.0.2"}))
    async with site.running() as running:
        assert running.url.startswith("http://127.0.0.2:")
        assert (await running.get("/api/status"))["experiment"] == "test"
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(running.url.replace("127.0.0.2", "127.0.0.1"))


async def test_the_first_rule_that_matches_wins(new_site: NewSite) -> None:
    """V18 (rules), V7: a rule without pipelines means ignored, and recorded so; what no rule matches is too."""
    rules = [
        {"when": {"run": 1}, "pipelines": []},
        {"when": {"run": 2}, "pipelines": ["dqm", "other"]},
        {"when": {"run": 3, "subrun": 0}, "pipelines": ["other"]},
    ]
    stages = {"quick": {"steps": [obey()]}}
    site = new_site(
        declare(stages, stream={"rules": rules}, pipelines={"dqm": {"stages": stages}, "other": {"stages": stages}})
    )
    async with site.running():
        for run in (1, 2, 3):
            for subrun in (0, 1):
                site.arrive(subrun, run=run)
        await site.until(lambda: len(site.rows(schema.arrival)) == 6)
        await site.until_done(5)
    verdicts = {row.data_id: row.verdict for row in site.rows(schema.arrival)}
    ignored = {name for name, verdict in verdicts.items() if verdict == "ignored"}
    assert ignored == {"run=1 subrun=0", "run=1 subrun=1", "run=3 subrun=1"}
    assert len(site.rows(schema.sub_job)) == 5
    assert len(site.rows(schema.data_group)) == 2


async def test_a_format_decides_what_a_payload_gets_and_gives(new_site: NewSite) -> None:
    """V18 (format, python, params): JSON in as what it means, arrays out as npz."""
    step = {
        "name": "convert",
        "python": "obedient:convert",
        "inputs": {"raw": "raw"},
        "outputs": {"table": "table", "line": "line"},
        "params": {"scale": 3},
    }
    declared = declare({"quick": {"steps": [step]}})
    declared["dataset_types"] |= {"raw": {"format": "json"}, "table": {"format": "npz"}, "line": {"format": "text"}}
    site = new_site(declared)
    async with site.running():
        site.arrive(0, json.dumps({"values": [1, 2]}))
        site.arrive(1, "no JSON")
        await site.until_settled(2, patience_s=40)
    assert site.text("line", "run=1 subrun=0") == "[3, 6]"
    assert {row.format for row in site.rows(schema.dataset)} == {"npz", "text"}
    assert site.units()["run=1 subrun=1"] == "failed"


def test_what_a_dataset_type_is_about_is_explained(new_site: NewSite) -> None:
    """V18 (about): people are told, and programs that ask for the experiment."""
    declared = declare()
    declared["dataset_types"]["raw"]["about"] = "Counts of every [pixel]."
    told, experiment = StringIO(), new_site(declared).experiment
    Console(file=told, width=100).print(explain(experiment, []))
    assert "raw (text): Counts of every [pixel]." in told.getvalue()
    assert "made-quick (" not in told.getvalue()
    assert "Counts of every [pixel]." in json.dumps(as_json(experiment, []))
