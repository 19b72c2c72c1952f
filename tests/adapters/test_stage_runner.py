"""The stage runner: one attempt of a stage, from its inputs to its manifest, whatever its payloads do."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from builders import command, order, python, raw_file, sha256

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot import outputs, stage_runner
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.step import StepCall
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.experiment import Format, Step
from p3s_prefect.core.records import Failure, InputFile, Manifest, StageOrder, StageReport

UNIT = DataId.of(run=1, subrun=3)


@dataclass
class Bench:
    """A stage runner with a store and a file that has arrived."""

    runner: StageRunner
    store: DirectoryStore
    watched: Path
    scratch: Path

    def arrive(self, content: str | bytes = "raw", name: str = "run1.txt") -> Path:
        path = self.watched / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def order(self, *steps: Step, **fields: Any) -> StageOrder:
        return order(self.store.url, *steps, **fields)

    def run(self, *steps: Step, **fields: Any) -> StageReport:
        report = self.runner.run(self.order(*steps, **fields))
        assert list(self.scratch.iterdir()) == [], "the scratch directory is clean after each stage"
        return report

    def made(self, report: StageReport, dataset_type: str = "text") -> str:
        """The text that a good report has published."""
        assert report.failure is None, report.reason
        assert report.manifest is not None
        (found,) = [output for output in report.manifest.outputs if output.dataset_type == dataset_type]
        content = self.store.read_bytes(found.key)
        assert (sha256(content), len(content)) == (found.sha256, found.size)
        return content.decode()

    def log(self, report: StageReport) -> bytes:
        assert report.log is not None
        return self.store.read_bytes(report.log.key)

    def failed(self, report: StageReport, failure: Failure, *parts: str) -> None:
        """It failed in this way, says why, has published nothing, and the next unit is well."""
        assert (report.failure, report.manifest) == (failure, None), report.reason
        for part in parts:
            assert part in report.reason
        assert [found.key for found in self.store.list("") if found.key.endswith("manifest.json")] == []
        good = self.run(python("prints", outputs={"out": "text"}), prefix=f"next/{report.execution}")
        assert self.made(good) == "printed"


@pytest.fixture
def bench(runner: StageRunner, store: DirectoryStore, tmp_path: Path) -> Bench:
    watched, scratch = tmp_path / "watched", tmp_path / "scratch"
    watched.mkdir()
    scratch.mkdir()
    return Bench(runner=runner, store=store, watched=watched, scratch=scratch)


def script(bench: Bench, text: str, name: str = "payload.sh") -> Path:
    path = bench.watched / name
    path.write_text(text)
    path.chmod(0o755)
    return path


OUT = {"out": "text"}


# --- P15: commands --------------------------------------------------------------------------------------------------


def test_a_shell_script_finds_its_inputs_and_outputs_in_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P15."""
    monkeypatch.setenv("P3S_TOKEN", "secret")
    payload = script(
        bench,
        """#!/bin/sh
        set -e
        cat "$P3S_INPUT_RAW_DATA" > "$P3S_OUTPUT_NOISE_MAP"
        echo "$P3S_UNIT" > "$P3S_OUTPUT_OUT"
        echo "$P3S_PARAMS" >> "$P3S_OUTPUT_OUT"
        echo "$1" >> "$P3S_OUTPUT_OUT"
        ls >> "$P3S_OUTPUT_OUT"
        env | grep ^P3S_ | cut -d= -f1 | sort >> "$P3S_OUTPUT_OUT"
        """,
    )
    step = command(
        payload,
        "$HOME * `id`; rm -rf /",
        inputs={"raw-data": "raw"},
        outputs={"out": "text", "noise_map": "json"},
        params={"threshold": 3.5},
    )
    report = bench.run(step, inputs=[raw_file(bench.arrive("[1, 2]"))])
    assert bench.made(report, "json") == "[1, 2]"
    assert bench.made(report).splitlines() == [
        "run=1 subrun=3",
        '{"threshold": 3.5}',
        "$HOME * `id`; rm -rf /",
        "noise_map.json",
        "out.txt",
        "P3S_INPUT_RAW_DATA",
        "P3S_OUTPUT_NOISE_MAP",
        "P3S_OUTPUT_OUT",
        "P3S_PARAMS",
        "P3S_UNIT",
    ]


def test_a_program_of_another_language_describes_itself_by_files(bench: Bench) -> None:
    """P15, P17: it imports nothing of ours."""
    payload = script(
        bench,
        """#!/usr/bin/env python3
import json, os, sys
open(os.environ["P3S_OUTPUT_OUT"], "w").write("made")
json.dump({"noise": {"value": 4.2, "unit": "ADC"}}, open("summary.json", "w"))
json.dump([{"category": "camera", "title": "Noise", "file": "n.png", "shows": "it"}], open("products.json", "w"))
open("n.png", "wb").write(b"png")
sys.exit("p3s_prefect" in sys.modules)
""",
    )
    report = bench.run(command(payload, outputs=OUT))
    assert bench.made(report) == "made"
    assert report.manifest is not None
    assert report.manifest.summary["noise"].value == 4.2
    (product,) = report.manifest.products
    assert (product.product.title, bench.store.read_bytes(product.key)) == ("Noise", b"png")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("exit 3", ["exited with 3"]),
        ("kill -TERM $$", ["was ended by SIGTERM"]),
        ("kill -40 $$", ["was ended by signal 40"]),
        ("true", ["did not write its output 'out'"]),
        ('ln -s /etc/passwd "$P3S_OUTPUT_OUT"', ["did not write its output 'out'"]),
        ("echo made > ../out.txt", ["did not write its output 'out'"]),
        ('echo made > "$P3S_OUTPUT_OUT"; echo "{" > summary.json', ["summary.json cannot be read"]),
        ('echo made > "$P3S_OUTPUT_OUT"; : > summary.json', ["summary.json cannot be read"]),
        ('echo made > "$P3S_OUTPUT_OUT"; ln -s /etc/passwd summary.json', ["summary.json is not a plain file"]),
        ('echo made > "$P3S_OUTPUT_OUT"; mkdir products.json', ["products.json is not a plain file"]),
        ('echo made > "$P3S_OUTPUT_OUT"; head -c 2000000 /dev/zero > summary.json', ["summary.json is larger"]),
    ],
)
def test_a_command_that_ends_badly_fails_its_own_unit_only(bench: Bench, text: str, parts: list[str]) -> None:
    """P15, V15, S8."""
    report = bench.run(command(script(bench, f"#!/bin/sh\n{text}\n"), outputs=OUT))
    bench.failed(report, Failure.PAYLOAD, *parts)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text("#!/bin/sh\n"), "Permission denied"),
        (lambda path: path.mkdir(), "Permission denied"),
        (lambda path: (path.write_text("no program"), path.chmod(0o755)), "Exec format error"),
    ],
)
def test_a_command_that_cannot_be_run_says_why(bench: Bench, make: Callable[[Path], None], why: str) -> None:
    """P15, S8."""
    path = bench.watched / "payload"
    make(path)
    bench.failed(bench.run(command(path, outputs=OUT)), Failure.PAYLOAD, "payload cannot be run", why)


# --- Python payloads ------------------------------------------------------------------------------------------------


def test_steps_hand_on_their_files_without_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """P15: Python and commands, mixed; each output is put once, and none is fetched."""
    watched = _watched_store(monkeypatch)
    copy = script(bench, '#!/bin/sh\ncp "$P3S_INPUT_TEXT" "$P3S_OUTPUT_OUT"\n')
    report = bench.run(
        python("upper", name="upper", inputs={"raw": "raw"}, outputs={"out": "text-1"}),
        command(copy, name="copy", inputs={"text": "text-1"}, outputs={"out": "text-2"}),
        python("twice", name="twice", inputs={"text": "text-2"}, outputs={"out": "text"}),
        inputs=[raw_file(bench.arrive("abc"))],
    )
    assert bench.made(report) == "ABCABC"
    assert report.manifest is not None
    assert [output.dataset_type for output in report.manifest.outputs] == ["text-1", "text-2", "text"]
    assert [found.step for found in report.steps] == ["upper", "copy", "twice"]
    assert watched.calls == ["put_file"] * 3 + ["put_bytes"]


def test_the_manifest_says_what_was_read_and_made_and_is_in_the_store(bench: Bench) -> None:
    """V13, P17."""
    stored = bench.store.put_bytes("earlier/out.txt", b"from the store")
    files = [
        raw_file(bench.arrive("abc")),
        InputFile(
            dataset_type="text-in",
            format=Format.TEXT,
            data_id=UNIT,
            key=stored.key,
            size=stored.size,
            sha256=stored.sha256,
            dataset_id=7,
        ),
    ]
    step = python(
        "describe", inputs={"raw": "raw", "other": "text-in"}, outputs={"out": "text"}, params={"factor": 2.5}
    )
    report = bench.run(step, inputs=files)
    assert bench.made(report) == "run=1 subrun=3 x 2.5"
    assert report.manifest is not None
    assert [(read.sha256, read.dataset_id) for read in report.manifest.lineage] == [
        (sha256(b"abc"), None),
        (stored.sha256, 7),
    ]
    key = f"runs/test/run=1/subrun=3/quick/attempt0/{report.execution}/manifest.json"
    assert Manifest.model_validate_json(bench.store.read_bytes(key)) == report.manifest
    assert report.manifest.summary["factor"].unit == "ADC"
    assert report.started_at <= report.steps[0].started_at <= report.steps[0].ended_at <= report.ended_at


def test_arrays_and_products_of_a_python_payload(bench: Bench) -> None:
    """P15, P17."""
    report = bench.run(
        python("arrays", name="arrays", outputs={"out": "npz"}),
        python("add_up", name="add", inputs={"arrays": "npz"}, outputs=OUT),
        python("picture", name="picture", outputs={"out": "text-p"}),
    )
    assert bench.made(report) == "3.0"
    assert report.manifest is not None
    assert [(found.step, found.product.file) for found in report.manifest.products] == [("picture", "a.png")]


def test_a_stage_per_group_gets_its_members_in_order(bench: Bench) -> None:
    """P22: a mapping for Python, a directory for a command, and the coverage for both."""
    files = [
        raw_file(bench.arrive(f"unit {subrun}", name=f"{subrun}.txt"), data_id=DataId.of(run=1, subrun=subrun))
        for subrun in (2, 10, 30)
    ]
    listing = script(bench, '#!/bin/sh\n(ls "$P3S_INPUT_RAW"; echo "$P3S_COVERAGE") > "$P3S_OUTPUT_OUT"\n')
    group = {"per": "group", "data_id": DataId.of(run=1), "coverage": {"done": 3, "failed": 1}}
    report = bench.run(
        python("gather", name="inputs", inputs={"raw": "raw"}, outputs=OUT),
        command(listing, name="list", inputs={"raw": "raw"}, outputs={"out": "text-2"}),
        inputs=files,
        **group,
    )
    members = [(2, "unit 2"), (10, "unit 10"), (30, "unit 30")]
    assert bench.made(report) == f"run=1: {members} {{'done': 3, 'failed': 1}}"
    assert bench.made(report, "text-2").splitlines() == [
        "run=1_subrun=10.txt",
        "run=1_subrun=2.txt",
        "run=1_subrun=30.txt",
        '{"done": 3, "failed": 1}',
    ]


def test_a_stage_per_group_is_told_how_many_units_each_stands_for(bench: Bench) -> None:
    """P6, P22: a mapping for Python, a file for a command, both by the name of the input; with what is missing."""
    files = [raw_file(bench.arrive(f"{n}", name=f"{n}.txt"), data_id=DataId.of(run=1, subrun=n)) for n in (2, 10)]
    weights = {"raw": {DataId.of(run=1, subrun=n): weight for n, weight in ((2, 1.0), (10, 2.5), (30, 4.0))}}
    copying = script(bench, '#!/bin/sh\ncp "$P3S_WEIGHTS" "$P3S_OUTPUT_OUT"\n')
    report = bench.run(
        python("weigh", name="weigh", inputs={"raw": "raw"}, outputs=OUT),
        command(copying, name="copy", inputs={"waveforms": "raw"}, outputs={"out": "text-2"}),
        inputs=files,
        per="group",
        data_id=DataId.of(run=1),
        weights=weights,
    )
    assert bench.made(report) == "3.5 without [30]"
    named = {"run=1 subrun=2": 1.0, "run=1 subrun=10": 2.5, "run=1 subrun=30": 4.0}
    assert json.loads(bench.made(report, "text-2")) == {"waveforms": named}


def test_a_group_of_one_unit_with_the_same_name_is_a_group(bench: Bench) -> None:
    """P22."""
    file = raw_file(bench.arrive("alone"), is_gathered=True)
    report = bench.run(python("gather", inputs={"raw": "raw"}, outputs=OUT), inputs=[file], per="group", data_id=UNIT)
    assert bench.made(report) == "run=1 subrun=3: [(3, 'alone')] {}"


@pytest.mark.parametrize("how", ["ValueError", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "Unprintable"])
def test_whatever_a_payload_raises_is_its_own_failure(bench: Bench, how: str) -> None:
    """V15: the log has the traceback."""
    report = bench.run(python("ends", outputs=OUT, params={"how": how}))
    assert b"Traceback" in bench.log(report)
    bench.failed(report, Failure.PAYLOAD, "step work: ", how)


@pytest.mark.parametrize("how", ["Unpicklable", "MemoryError", "surrogate", "long"])
def test_an_odd_error_becomes_a_reason_that_every_database_takes(bench: Bench, how: str) -> None:
    """V15, P7."""
    report = bench.run(python("ends", outputs=OUT, params={"how": how}))
    report.reason.encode()
    assert len(report.reason) <= 2000
    bench.failed(report, Failure.PAYLOAD, "step work: ")


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("number", "TypeError"),
        ("wrong-type", "output 'out' cannot be written as text: expected a text, got int"),
        ("undeclared", "returned more, which the step does not declare"),
        ("nan", "summary"),
        ("surrogate", "summary.json"),
        ("bad-summary", "summary.json"),
        ("circle", "summary"),
        ("no-json", "summary"),
        ("path-traversal", "products.json"),
        ("absolute", "products.json"),
        ("missing-product", "absent.png"),
        ("objects", "cannot be written as text"),
    ],
)
def test_a_wrong_return_is_a_failure_that_names_it(bench: Bench, what: str, part: str) -> None:
    """P17, V15, S8."""
    bench.failed(bench.run(python("returns", outputs=OUT, params={"what": what})), Failure.PAYLOAD, part)


@pytest.mark.parametrize("what", ["link", "directory", "pipe", "outside", "nothing"])
def test_what_is_no_plain_file_is_no_output(bench: Bench, what: str) -> None:
    """V15: a link to a file of this machine would be published."""
    bench.failed(
        bench.run(python("leaves", outputs=OUT, params={"what": what})), Failure.PAYLOAD, "did not write its output"
    )


def test_an_empty_output_is_an_output(bench: Bench) -> None:
    """P15: how much is too little is for a breaker to say."""
    assert bench.made(bench.run(python("leaves", outputs=OUT, params={"what": "empty"}))) == ""


def test_two_steps_that_give_one_summary_value_are_refused(bench: Bench) -> None:
    """P17."""
    first = python("describe", name="a", outputs={"out": "text-1"}, params={"factor": 1.0})
    second = python("describe", name="b", outputs={"out": "text-2"}, params={"factor": 2.0})
    bench.failed(bench.run(first, second), Failure.PAYLOAD, "two steps give the summary value 'factor'")


@pytest.mark.parametrize("function", ["absent", "DataId.of", "np"])
def test_a_function_that_is_not_there_is_the_steps_failure(bench: Bench, function: str) -> None:
    """S8."""
    step = Step.model_construct(name="work", python=f"payloads:{function}", outputs=OUT, inputs={}, params={})
    bench.failed(bench.run(step.model_copy(update={"timeout_s": 9})), Failure.PAYLOAD, "step work")


@pytest.mark.parametrize("how", ["exit 0", "segfault", "descriptors"])
def test_a_payload_that_ends_its_process_fails_its_own_unit_only(bench: Bench, how: str) -> None:
    """P12, V15: which is noticed by itself, and not when the step's time is over."""
    report = bench.run(python("dies", outputs=OUT, params={"how": how}))
    bench.failed(report, Failure.PAYLOAD, "ended its process")


@pytest.mark.parametrize(
    "what",
    ["environment", "directory", "standard output", "no standard output", "descriptors 1 and 2", "alarm", "signals"],
)
def test_what_a_payload_changes_is_undone_before_the_next(bench: Bench, what: str) -> None:
    """P12: its slot is clean."""
    assert bench.made(bench.run(python("spoils", outputs=OUT, params={"what": what}))) == "spoilt"
    pause_s = 1.2 if what == "alarm" else 0
    seen = bench.run(
        python("environment", name="a", outputs={"out": "text-e"}),
        python("working_directory", name="b", outputs={"out": "text-d"}),
        python("prints", name="c", outputs={"out": "text-p"}),
        command("sh", "-c", f"sleep {pause_s}; env; kill -TERM $$", name="d"),
        prefix="next",
    )
    assert (seen.failure, seen.reason) == (Failure.PAYLOAD, "step d: sh was ended by SIGTERM")
    log = bench.log(seen)
    assert b"from python" in log
    assert b"LEFT_BEHIND" not in log


def test_a_python_payload_is_told_no_secret_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P15: it works in a directory of its own, and may start processes."""
    monkeypatch.setenv("P3S_TOKEN", "secret")
    with closing(PayloadProcesses()) as processes:
        fresh = Bench(StageRunner(processes, bench.scratch), bench.store, bench.watched, bench.scratch)
        report = fresh.run(
            python("environment", name="a", outputs={"out": "text-e"}),
            python("working_directory", name="b", outputs={"out": "text-d"}),
            python("uses_processes", name="c", outputs={"out": "text-p"}),
        )
    assert bench.made(report, "text-e") == ""
    directory, _, names = bench.made(report, "text-d").partition(" ")
    assert Path(directory).is_relative_to(bench.scratch)
    assert names == "['scribble']"
    assert bench.made(report, "text-p") == "3"


# --- logs -----------------------------------------------------------------------------------------------------------


def test_everything_that_is_printed_is_in_the_log(bench: Bench) -> None:
    """P15: from Python, native code and children, in any bytes, of good stages and of failed ones."""
    for last in ([], [command("false", name="fails")]):
        report = bench.run(
            python("prints", name="a", outputs={"out": "text-a"}),
            command("sh", "-c", "echo to output; echo to error >&2; printf '\\377\\000'", name="b"),
            *last,
            prefix=f"with{len(last)}",
        )
        log = bench.log(report)
        for part in (
            b"from python\n",
            b"half a pair \\udcff",
            b"raw bytes \xff\xfe\x00",
            b"from native code\n",
            b"from a child\n",
            b"to output\nto error\n\xff\x00",
        ):
            assert log.count(part) == 1


def test_a_huge_log_is_kept_by_its_end(bench: Bench) -> None:
    """P15, V15."""
    report = bench.run(command("sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo the end"))
    log = bench.log(report)
    assert len(log) == outputs.MOST_LOG_BYTES
    assert log.endswith(b"xthe end\n")


def test_silence_has_no_log(bench: Bench) -> None:
    """P15."""
    report = bench.run(command("true"))
    assert (report.failure, report.log) == (None, None)


# --- inputs ---------------------------------------------------------------------------------------------------------


def _grow(path: Path) -> None:
    with path.open("a") as file:
        file.write("more")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_grow, "no longer the file that arrived"),
        (lambda path: os.utime(path, ns=(0, 0)), "no longer the file that arrived"),
        (lambda path: path.unlink(), "is gone"),
        (lambda path: (path.unlink(), path.mkdir()), "no longer the file that arrived"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no longer the file that arrived"),
    ],
)
def test_an_input_that_is_not_the_one_that_arrived_is_not_read(
    bench: Bench, change: Callable[[Path], None], part: str
) -> None:
    """P2, P3."""
    path = bench.arrive("abc")
    file = raw_file(path)
    change(path)
    report = bench.run(python("upper", inputs={"raw": "raw"}, outputs=OUT), inputs=[file])
    bench.failed(report, Failure.INPUT, path.name, part)
    assert report.steps == ()


def test_an_input_whose_checksum_is_known_is_told_by_its_bytes(bench: Bench) -> None:
    """P2: touched, it is the same; with other bytes of the same length it is not."""
    path = bench.arrive("abc")
    file = raw_file(path, sha256=sha256(b"abc"))
    os.utime(path, ns=(5, 5))
    step = python("upper", inputs={"raw": "raw"}, outputs=OUT)
    assert bench.made(bench.run(step, inputs=[file])) == "ABC"
    path.write_text("abd")
    failed = bench.run(step, inputs=[file], prefix="again")
    assert (failed.failure, "no longer has the checksum" in failed.reason) == (Failure.INPUT, True)


def test_an_input_that_changes_while_it_is_read_gives_no_results(bench: Bench) -> None:
    """P3, V13: the lineage would name bytes that were not read."""
    path = bench.arrive("abc")
    replace = script(
        bench, f'#!/bin/sh\necho new > "{path}.new"; mv "{path}.new" "{path}"; cp "{path}" "$P3S_OUTPUT_OUT"\n'
    )
    report = bench.run(command(replace, inputs={"raw": "raw"}, outputs=OUT), inputs=[raw_file(path)])
    bench.failed(report, Failure.INPUT, "run1.txt changed while it was read")


def test_an_input_that_cannot_be_read_says_why(bench: Bench) -> None:
    """S8: a file on a broken disk; reading this one from its beginning is an I/O error for everybody."""
    file = raw_file(Path("/proc/self/mem"), sha256=sha256(b""))
    report = bench.run(python("upper", inputs={"raw": "raw"}, outputs=OUT), inputs=[file])
    bench.failed(report, Failure.INPUT, "mem cannot be read: Input/output error")


@pytest.mark.parametrize("fault", ["missing", "flipped"])
def test_a_dataset_that_is_missing_or_damaged_is_an_input_failure(bench: Bench, fault: str) -> None:
    """V13."""
    stored = bench.store.put_bytes("earlier/out.txt", b"from the store")
    path = bench.store.root / "earlier" / "out.txt"
    path.chmod(0o644)
    path.unlink() if fault == "missing" else path.write_bytes(b"from the stOre")
    file = InputFile(
        dataset_type="raw", format=Format.TEXT, data_id=UNIT, key=stored.key, size=stored.size, sha256=stored.sha256
    )
    report = bench.run(python("upper", inputs={"raw": "raw"}, outputs=OUT), inputs=[file])
    bench.failed(report, Failure.INPUT, "earlier/out.txt")


def test_an_input_that_nobody_has_made_is_named(bench: Bench) -> None:
    """V15, S8: the steps before it have run, and trying again will not help."""
    report = bench.run(command("true", name="a"), python("upper", inputs={"raw": "raw"}, outputs=OUT))
    bench.failed(report, Failure.INPUT, "step work reads raw, which nothing has made")


def test_an_input_that_is_not_in_its_format_fails_the_step(bench: Bench) -> None:
    """V15: no pickle is opened, either."""
    file = raw_file(bench.arrive(b"\x80\x04no array"), format=Format.NPZ)
    report = bench.run(python("upper", inputs={"raw": "raw"}, outputs=OUT), inputs=[file])
    bench.failed(report, Failure.PAYLOAD, "step work: ")


# --- limits and stopping --------------------------------------------------------------------------------------------


def test_timeout_s_kills_the_step_and_keeps_its_log(bench: Bench) -> None:
    """V18 (timeout_s), P12."""
    step = command("sh", "-c", "echo begun; sleep 1000", timeout_s=0.5)
    report = bench.run(command("true", name="before"), step)
    assert bench.log(report) == b"begun\n"
    assert [found.step for found in report.steps] == ["before", "work"]
    bench.failed(report, Failure.TIMEOUT, "step work was killed after its 0.5 s")


def test_stop_at_kills_the_stage_at_its_deadline(bench: Bench) -> None:
    """P8, V18 (stop_at_deadline): not earlier, and by nothing else, as it would go on for ever."""
    stop_at = time.time() + 0.5
    report = bench.run(python("hangs", params={"how": "native sleep"}), stop_at=stop_at)
    assert time.time() >= stop_at
    bench.failed(report, Failure.DEADLINE, "killed at the deadline")


def test_a_stage_whose_deadline_has_passed_is_not_begun(bench: Bench, tmp_path: Path) -> None:
    """P8."""
    report = bench.run(command("touch", tmp_path / "begun"), stop_at=time.time() - 1)
    assert not (tmp_path / "begun").exists()
    bench.failed(report, Failure.DEADLINE, "was not begun")


def test_the_shorter_of_both_limits_gives_its_name(bench: Bench) -> None:
    """P8, V18."""
    report = bench.run(python("hangs", params={"how": "sleep"}, timeout_s=0.3), stop_at=time.time() + 60)
    assert report.failure is Failure.TIMEOUT


def test_stop_kills_the_attempt_that_is_meant_and_no_other(bench: Bench, tmp_path: Path) -> None:
    """V22."""
    with ThreadPoolExecutor(2) as threads:
        signs = [tmp_path / f"started{number}" for number in (1, 2)]
        runs = [
            threads.submit(
                bench.runner.run,
                bench.order(
                    python("hangs", params={"how": "native sleep", "started": str(sign)}, timeout_s=6),
                    attempt_id=number,
                ),
            )
            for number, sign in enumerate(signs, start=1)
        ]
        while not all(sign.exists() for sign in signs):
            time.sleep(0.01)
        bench.runner.stop(99)
        bench.runner.stop(1)
        assert (runs[0].result().failure, runs[0].result().reason) == (Failure.STOPPED, "it was stopped")
        assert not runs[1].done()
        bench.runner.stop(2)
        assert runs[1].result().failure is Failure.STOPPED
    bench.runner.stop(1)


@dataclass
class StopsAt:
    """Stops the attempt when a step is about to begin: the earliest moments at which anybody could."""

    step: str
    runner: StageRunner | None = None
    seen: list[str] = field(default_factory=list)

    def step_begins(self, call: StepCall) -> None:
        self.seen.append(call.step.name)
        if call.step.name == self.step:
            assert self.runner is not None
            self.runner.stop(1)


@pytest.mark.parametrize("step", ["first", "second"])
def test_stop_is_obeyed_also_just_before_a_step_begins(
    bench: Bench, processes: PayloadProcesses, tmp_path: Path, step: str
) -> None:
    """V22."""
    observer = StopsAt(step)
    observer.runner = bench.runner = StageRunner(processes, bench.scratch, observer=observer)
    report = bench.run(*(command("touch", tmp_path / f"{name}-ran", name=name) for name in ("first", "second", "last")))
    assert report.failure is Failure.STOPPED
    assert observer.seen[-1] == step
    assert not (tmp_path / f"{step}-ran").exists()
    assert not (tmp_path / "last-ran").exists()


def test_two_runs_at_once_do_not_mix(bench: Bench) -> None:
    """P12: also two executions of one attempt, as Dask may start it again."""
    steps = [
        command("sh", "-c", 'echo $P3S_UNIT; sleep 0.3; echo $P3S_UNIT > "$P3S_OUTPUT_OUT"', name="a", outputs=OUT),
        python("describe", name="b", outputs={"out": "text-b"}, params={"factor": 2.0}),
    ]
    units = [DataId.of(run=1, subrun=1), DataId.of(run=1, subrun=2), DataId.of(run=1, subrun=2)]
    orders = [
        bench.order(*steps, attempt_id=int(unit["subrun"]), data_id=unit, prefix=f"runs/{unit.path}") for unit in units
    ]
    with ThreadPoolExecutor(3) as threads:
        reports = list(threads.map(bench.runner.run, orders))
    for unit, report in zip(units, reports, strict=True):
        assert bench.made(report) == f"{unit}\n"
        assert bench.made(report, "text-b") == f"{unit} x 2.0"
        assert bench.log(report) == f"{unit}\n".encode()
    assert len({report.execution for report in reports}) == 3
    assert list(bench.scratch.iterdir()) == []


# --- V13: the store fails -------------------------------------------------------------------------------------------


@dataclass
class WatchedStore:
    """Passes everything on, notes it, and fails at the call of a given number, before or after it took effect."""

    store: DirectoryStore
    calls: list[str]
    fails_at: int = 0
    fails_after: bool = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.store, name)

        def watched(*arguments: Any) -> Any:
            self.calls.append(name)
            fails = len(self.calls) == self.fails_at
            if fails and not self.fails_after:
                raise StoreError("the disk is full")
            answer = call(*arguments)
            if fails:
                raise StoreError("the disk is full")
            return answer

        return watched


def _watched_store(monkeypatch: pytest.MonkeyPatch, **fails: Any) -> WatchedStore:
    opened = stage_runner.open_store
    watched = WatchedStore(DirectoryStore(Path("unused")), [], **fails)

    def open_watched(url: str) -> Any:
        watched.store = opened(url)
        return watched

    monkeypatch.setattr(stage_runner, "open_store", open_watched)
    return watched


@pytest.mark.parametrize("fails_after", [False, True])
def test_a_store_that_fails_at_any_call_leaves_no_manifest_or_a_complete_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fails_after: bool
) -> None:
    """V13: everything that a manifest names stands before it does."""
    stored = bench.store.put_bytes("earlier/out.txt", b"some")
    file = InputFile(
        dataset_type="raw", format=Format.TEXT, data_id=UNIT, key=stored.key, size=stored.size, sha256=stored.sha256
    )
    steps = [
        python("upper", name="a", inputs={"raw": "raw"}, outputs={"out": "text-a"}),
        python("picture", name="b", outputs={"out": "text-b"}),
        command("echo", "printed", name="c"),
    ]
    number = 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            watched = _watched_store(patch, fails_at=number, fails_after=fails_after)
            report = bench.run(*steps, inputs=[file], prefix=f"runs/{number}")
        if number > len(watched.calls):
            break
        assert (report.failure, report.manifest) == (Failure.STORE, None)
        assert "the disk is full" in report.reason
        _check_manifests(
            bench, f"runs/{number}/", complete=fails_after and watched.calls[number - 1 :][0] == "put_bytes"
        )
    assert report.failure is None
    assert watched.calls == ["fetch", "put_file", "put_file", "put_file", "put_bytes", "put_bytes"]


def _check_manifests(bench: Bench, prefix: str, *, complete: bool) -> None:
    keys = {found.key: found.size for found in bench.store.list(prefix)}
    for key in keys:
        if key.endswith("manifest.json"):
            assert complete
            manifest = Manifest.model_validate_json(bench.store.read_bytes(key))
            named = [*manifest.outputs, *manifest.products, *([manifest.log] if manifest.log else [])]
            assert {found.key: found.size for found in named} == {k: v for k, v in keys.items() if k != key}


def test_a_store_that_cannot_be_opened_and_a_scratch_that_is_no_directory_are_reported(
    bench: Bench, processes: PayloadProcesses, tmp_path: Path
) -> None:
    """S8: whatever goes wrong stands in the report."""
    report = bench.runner.run(order("tape://vault", command("true")))
    assert (report.failure, report.reason) == (Failure.STORE, "no store is known for tape:// URLs")
    (tmp_path / "file").write_text("")
    report = StageRunner(processes, tmp_path / "file").run(bench.order(command("true")))
    assert report.failure is Failure.STORE
    assert "Not a directory" in report.reason


@pytest.mark.parametrize("name", ["inputs", "log.txt", "steps", "manifest"])
def test_a_step_may_have_any_name(bench: Bench, name: str) -> None:
    """S8."""
    report = bench.run(
        python("upper", name=name, inputs={"raw": "raw"}, outputs=OUT), inputs=[raw_file(bench.arrive())]
    )
    assert bench.made(report) == "RAW"


def test_names_in_a_report_are_those_of_the_execution(bench: Bench) -> None:
    """V13: two executions of one attempt never write the same keys."""
    step = python("describe", outputs=OUT, params={"factor": 1.0})
    first, second = bench.run(step), bench.run(step)
    assert first.manifest is not None
    assert second.manifest is not None
    assert first.manifest.outputs[0].key != second.manifest.outputs[0].key


def test_a_clock_that_is_set_meanwhile_changes_no_duration(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: nor does it end an attempt at a deadline that is far."""
    hours = count()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * next(hours))
    work = command("/bin/sh", "-c", 'sleep 0.2; echo made > "$P3S_OUTPUT_OUT"', outputs=OUT)
    report = bench.run(work, stop_at=clock() + 60)
    assert report.failure is None, report.reason
    (step,) = report.steps
    assert 0.2 <= step.ended_at - step.started_at <= report.service_s < 60
    assert report.manifest is not None
    assert report.started_at <= report.manifest.ended_at <= report.ended_at
