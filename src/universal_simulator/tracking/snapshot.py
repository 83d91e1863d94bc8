"""What one run folder shows to the outside: identity, curves, figures, files. Reads, never writes."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from universal_simulator.configuration.schema import TrackingConfig
from universal_simulator.credentials import masked
from universal_simulator.errors import IntegrityError, UserError
from universal_simulator.run_record import RunFolder, RunRecord, content_hash, read_document

Row = dict[str, float]


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Snapshot:
    """`rows` grow at their end only, so a row's index is a stable step; non-finite values are NaN.

    A resumed training repeats the rows after its checkpoint bit for bit, under the same indices.
    """

    run_id: str
    project: str
    group: str
    tags: tuple[str, ...]
    status: str
    config: dict[str, Any]
    rows: tuple[Row, ...]
    stages: tuple[str, ...]
    figures: dict[str, float | int | str]
    #: name -> what is mirrored whole
    files: dict[str, Path]
    #: checkpoint's name below the run folder -> bytes; named, never sent
    checkpoints: dict[str, int]

    @property
    def finished(self) -> bool:
        return self.status != "running"

    def page(self) -> Path | None:
        return self.files.get("evaluation.html")

    def pictures(self) -> list[Picture]:
        """Those of the run's page, as PNG."""
        page = self.page()
        return list(_pictures(page.read_text(encoding="utf-8"))) if page else []


def run_folders(folder: Path) -> list[RunFolder]:
    """Every begun run below an experiment's or sweep's folder, or the one run that `folder` is."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give a sweep's folder, or a run's")
    if folder.absolute().parent.name == "runs" and (folder / "config.json").is_file():
        return [RunFolder.of_path(folder)]
    runs = folder / "artifacts" / "runs"
    if not runs.is_dir():
        raise UserError(
            f"{folder} holds no runs: expected {runs}, as `usim run` and `usim sweep run` make it"
        )
    return [RunFolder.of_path(path) for path in sorted(runs.iterdir()) if (path / "config.json").is_file()]


def stamp(files: RunFolder) -> str:
    """Changes whenever a file that a snapshot reads changes: names, sizes and times of change."""
    named = _mirrored_files(files) | {"summary.json": files.summary}
    found = {}
    for name, path in named.items():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found[name] = [stat.st_size, stat.st_mtime_ns]
    return content_hash(found)


def read_snapshot(files: RunFolder) -> Snapshot:
    """The run as it stands now, finished or not; IntegrityError names a damaged file."""
    stored = _read_config(files.config)
    record = read_document(files.summary, RunRecord) if files.summary.is_file() else None
    config = stored["config"]
    try:
        tracking = TrackingConfig.model_validate(config.get("tracking", {}))
    except ValidationError as error:
        raise IntegrityError(f"{files.config}: its tracking section is unreadable: {error}") from error
    stages = _stages(files, config)
    rows = [row for stage in stages for row in _read_rows(files.metrics_log(stage), stage)]
    return Snapshot(
        run_id=files.run_id,
        project=tracking.project,
        group=tracking.group,
        tags=tuple(dict.fromkeys((*config.get("tags", ()), *tracking.tags))),
        status=record.status if record else "running",
        config=masked({**config, "config_hash": stored.get("hash"), **_identity(record)}),
        rows=tuple(rows),
        stages=tuple(stages),
        figures=masked(_figures(record)),
        files={name: path for name, path in _mirrored_files(files).items() if path.is_file()},
        checkpoints={
            str(path.relative_to(files.path)): path.stat().st_size
            for path in sorted([*files.path.glob("checkpoints/*.pt"), *files.path.glob("*.safetensors")])
        },
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
        raise IntegrityError(f"{path} holds no effective configuration; the run folder is damaged")
    return value


def _stages(files: RunFolder, config: Mapping[str, Any]) -> list[str]:
    """Those with a log, in the order they were trained in."""
    logged = {path.name[len("metrics_") : -len(".jsonl")] for path in files.path.glob("metrics_*.jsonl")}
    planned = [stage for stage in config.get("training", {}).get("stages", ()) if stage in logged]
    return planned + sorted(logged - set(planned))


def _read_rows(path: Path, stage: str) -> Iterator[Row]:
    """A last line without its end is still being written (or was torn): it comes next time."""
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            yield {f"{stage}/{k}": math.nan if v is None else float(v) for k, v in values.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path}:{number}: no line of metrics ({line[:40]!r})") from error


def _identity(record: RunRecord | None) -> dict[str, Any]:
    if record is None or record.training is None:
        return {}
    result = record.training.result
    return {"data_identity": result.data_identity, "code_version": result.code_version}


def _figures(record: RunRecord | None) -> dict[str, float | int | str]:
    """Everything measured, flat: `suite/regime/metric`; what is missing or not applicable is left out."""
    if record is None:
        return {"status": "running"}
    found: dict[str, float | int | str] = {"status": record.status}
    if record.failure:
        found["failure"] = record.failure
    if record.training is not None:
        result = record.training.result
        found |= {
            "params": result.params,
            "optimiser_steps": result.optimiser_steps,
            "training_flops": result.training_flops,
            "model_hash": result.model_hash,
        }
        found |= {f"validation/{k}": v for k, v in result.validation.items() if v is not None}
    seconds = record.wall_clock_s()
    if seconds is not None:
        found["wall_clock_s"] = seconds
    for suite, evaluation in record.evaluations.items():
        found[f"{suite}/protocol"] = evaluation.result.protocol.hash
        for regime, answer in evaluation.result.regimes.items():
            for name, metric in answer.metrics.items():
                for bound, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
                    if value is not None and metric.applicable:
                        found[f"{suite}/{regime}/{name}{bound}"] = value
    return found


def _mirrored_files(files: RunFolder) -> dict[str, Path]:
    logs = {path.name: path for path in sorted(files.path.glob("metrics_*.jsonl"))}
    reports = {f"evaluation.{kind}": files.report(kind) for kind in ("json", "csv", "html")}
    return {"config.json": files.config, "summary.json": files.summary, **logs, **reports}


def _pictures(page: str) -> Iterator[Picture]:
    found = re.finditer(r'<img alt="([^"]*)" src="data:image/png;base64,([A-Za-z0-9+/=]+)"', page)
    for number, match in enumerate(found, start=1):
        yield Picture(f"picture_{number}", html.unescape(match.group(1)), base64.b64decode(match.group(2)))
