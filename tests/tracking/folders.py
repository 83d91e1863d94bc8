"""Run folders as a run leaves them, made by hand in a millisecond."""

from __future__ import annotations

import json
from pathlib import Path

from tests.sweep.records import evaluation, run_record
from universal_simulator.configuration import load_config
from universal_simulator.run_record import RunFolder, RunRecord, write_json

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PAGE = f'<html><img alt="error &amp; time" src="data:image/png;base64,{PIXEL}"></html>'


def write_run(
    folder: Path,
    config: str = "sweep_round_a_lr3e4_w5",
    *,
    rows: int = 6,
    status: str = "finished",
    words: tuple[str, ...] = (),
) -> RunFolder:
    """A run of `config` with two stages of `rows` rows together, as far as `status` says."""
    loaded = load_config(config, words, profile="smoke")
    files = RunFolder(folder, f"{config}-s0-0123456789")
    write_json(
        files.config,
        {
            "hash": loaded.hash,
            "source": config,
            "data": "data/d.hdf5",
            "config": loaded.config.model_dump(mode="json"),
        },
    )
    write_rows(files, rows)
    record = run_record(
        files.run_id, config, 0, {"small_eval": evaluation(files.run_id, 0.05, suite="small_eval")}
    )
    if status == "failed":
        record = RunRecord(run_id=files.run_id, status="failed", failure="step 3: loss nan")
    if status != "running":
        write_json(files.summary, record)
        (folder / "reports").mkdir(exist_ok=True)
        for kind, text in (("json", "{}"), ("csv", "a,b\n"), ("html", PAGE)):
            files.report(kind).write_text(text)
        files.operator_ema.parent.mkdir(exist_ok=True)
        files.operator_ema.write_bytes(bytes(100))
    return files


def write_rows(files: RunFolder, count: int) -> None:
    for stage, first, last in (("codec", 0, min(2, count)), ("operator", 2, count)):
        lines = [
            json.dumps({"step": step + 1 - first, "total": None if step == 3 else 1 / (1 + step)})
            for step in range(first, last)
        ]
        if lines:
            files.metrics_log(stage).write_text("\n".join(lines) + "\n")
