"""usim sweep run | status | resume | report | explain"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from universal_simulator.cli.executors import (
    CeilingUsd,
    CloudFile,
    On,
    RayAddress,
    Where,
    Workers,
    opened,
)
from universal_simulator.cli.options import Json

app = typer.Typer(help="Run a written plan and see why each run was kept or rejected.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="the sweep's folder")]

Track = Annotated[
    bool, typer.Option("--track", help="mirror to Weights & Biases beside it (docs/tracking.md)")
]


@app.command("run")
def run_command(
    plan: Annotated[str, typer.Argument(help="a plan's name (plans/NAME.yaml) or path")],
    folder: Annotated[Path, typer.Option(help="the sweep's folder")],
    workers: Workers = 2,
    track: Track = False,
    executor: On = Where.local,
    ray_address: RayAddress = "local",
    ceiling_usd: CeilingUsd = None,
    cloud: CloudFile = None,
) -> None:
    """Run a plan to its champion. Interrupted and typed again, it goes on where it was.

    Example: usim sweep run smoke --folder runs/smoke
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.sweep.driver import run_sweep

    _track(track, folder)
    line = ProgressLine(estimates=False)
    with opened(
        executor,
        workers=workers,
        ray_address=ray_address,
        ceiling_usd=ceiling_usd,
        cloud=cloud,
        folder=folder,
    ) as place:
        run_sweep(
            plan,
            folder,
            executor=place,
            progress=lambda share, what: line.update("sweep", share, 1.0, what),
        )
    _outcome(folder)


@app.command()
def resume(
    folder: Folder,
    workers: Workers = 2,
    track: Track = False,
    executor: On = Where.local,
    ray_address: RayAddress = "local",
    ceiling_usd: CeilingUsd = None,
    cloud: CloudFile = None,
    plan: Annotated[
        str | None, typer.Option(help="its plan with another budget, machines or appended rounds")
    ] = None,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon",
            help="run again what was begun on another executor and has no end: only where nothing of it runs any more",
        ),
    ] = False,
) -> None:
    """Go on with the sweep in a folder, also with a larger budget or with rounds appended to its plan.

    Example: usim sweep resume runs/embedded --workers 2
    """
    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.sweep.driver import resume_sweep

    _track(track, folder)
    line = ProgressLine(estimates=False)
    with opened(
        executor,
        workers=workers,
        ray_address=ray_address,
        ceiling_usd=ceiling_usd,
        cloud=cloud,
        folder=folder,
    ) as place:
        resume_sweep(
            folder,
            plan=plan,
            executor=place,
            abandon=abandon,
            progress=lambda share, what: line.update("sweep", share, 1.0, what),
        )
    _outcome(folder)


@app.command()
def estimate(
    plan: Annotated[str, typer.Argument(help="a plan's name (plans/NAME.yaml) or path")],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="keep data and forecast here: `usim sweep run` goes on from them; needed with --executor vast"
        ),
    ] = None,
    workers: Workers = 2,
    executor: On = Where.local,
    ray_address: RayAddress = "local",
    ceiling_usd: CeilingUsd = None,
    cloud: CloudFile = None,
    as_json: Json = False,
) -> None:
    """Measure every member for a few steps; tell time, memory and cost of the plan before spending them.

    Example: usim sweep estimate sota_embedded --folder runs/embedded
    """
    import tempfile
    from contextlib import nullcontext
    from dataclasses import asdict

    from universal_simulator.cli.progress import ProgressLine
    from universal_simulator.errors import UserError
    from universal_simulator.sweep.driver import estimate_sweep
    from universal_simulator.sweep.forecast import as_document
    from universal_simulator.sweep.later_bound import later_bound

    if executor is Where.vast and folder is None:
        raise UserError(
            "with --executor vast the ledger of what is rented must outlive this command: give --folder DIR, "
            "the sweep's own (`usim sweep run` goes on from it, `usim cloud status DIR` tells what is rented)"
        )
    line = ProgressLine(estimates=False)
    kept = nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory(prefix="usim-")
    with (
        kept as there,
        opened(
            executor,
            workers=workers,
            ray_address=ray_address,
            ceiling_usd=ceiling_usd,
            cloud=cloud,
            folder=folder,
        ) as place,
    ):
        state = estimate_sweep(
            plan,
            Path(there),
            executor=place,
            progress=lambda share, what: line.update("estimate", share, 1.0, what),
        )
        later = later_bound(state)
        after = None if later is None else {**asdict(later), "sentence": later.sentence}
        document = as_document(state, workers=workers) | {"after_written_rounds": after}
    if as_json:
        typer.echo(json.dumps(document, indent=1))
        return
    _print_forecast(document)


@app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Which runs are done, failed or waiting, what is rented, kept and spent for them, and the champion if there is one.

    Example: usim sweep status runs/embedded
    """
    from universal_simulator.executors.kept_results import told_by_the_ledger
    from universal_simulator.sweep.fates import outcome
    from universal_simulator.sweep.state import SweepState

    state = SweepState(folder)
    runs = {
        run.run_id: "failed"
        if state.failed(f"train:{run.run_id}")
        else "done"
        if state.done(f"train:{run.run_id}")
        else "begun"
        if state.running(f"train:{run.run_id}")
        else "waiting"
        for run in state.runs
    }
    champion = state.decision("champion")
    cloud = told_by_the_ledger(folder)
    if as_json:
        told = {"plan": state.plan.name, "runs": runs, "champion": champion, "cloud": cloud}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(f"{state.plan.name}: {len(state.journal.events)} events")
    for run_id, what in runs.items():
        typer.echo(f"  {what:8} {run_id}")
    if cloud is not None:
        for lease in cloud["rented"]:
            typer.echo(
                f"rented: {lease['id'] or 'asked for'} for {lease['job']}, ${lease['usd_per_hour']:.4f} an hour"
            )
        for words in cloud["kept"]:
            typer.echo(words)
        typer.echo(f"${cloud['spent_usd']:.2f} spent on rented machines (usim cloud status asks the service)")
    typer.echo(outcome(state) if champion else "no champion yet")


@app.command()
def report(folder: Folder) -> None:
    """Rebuild leaderboard and sweep page from the journal and the records alone.

    Example: usim sweep report runs/embedded
    """
    from universal_simulator.sweep.driver import rebuild_reports
    from universal_simulator.sweep.report import report_path

    rebuild_reports(folder)
    typer.echo(str(report_path(folder)))


@app.command()
def explain(
    folder: Folder,
    run: Annotated[str | None, typer.Argument(help="one run id")] = None,
    as_json: Json = False,
) -> None:
    """Why each run was kept or rejected; what changed in it, why it helped or hurt, what to do next; its gates.

    Example: usim sweep explain runs/embedded RUN_ID
    """
    from universal_simulator.errors import UserError
    from universal_simulator.sweep.fates import fate, outcome, round_sentences
    from universal_simulator.sweep.gates import answer_words, crossed, telling
    from universal_simulator.sweep.state import SweepState
    from universal_simulator.sweep.verdicts import verdict

    state = SweepState(folder)
    known = [item.run_id for item in state.runs]
    if run is not None and run not in known:
        raise UserError(f"no run {run!r} in {folder}; runs: {', '.join(known)}")
    suites = {suite: state.gates(suite) for suite in ("small_eval", "full_eval")}
    asked = [run] if run else known
    rounds = round_sentences(state)
    rounds_of = {item.run_id: rounds.get(item.round) for item in state.runs}
    if as_json:
        told = {
            run_id: {
                "fate": fate(state, run_id),
                "round": rounds_of[run_id],
                "verdict": verdict(state, run_id),
                "gates": {
                    suite: [{**gate, "within_noise": crossed(gate)} for gate in gates.get(run_id, ())]
                    for suite, gates in suites.items()
                },
            }
            for run_id in asked
        }
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(outcome(state))
    for sentence in [rounds_of[run]] if run else rounds.values():
        typer.echo(sentence or "")
    for run_id in asked:
        typer.echo(run_id)
        typer.echo(f"  {fate(state, run_id)}")
        for line in verdict(state, run_id):
            typer.echo(f"  {line}")
        for suite, gates in suites.items():
            for gate in telling(gates.get(run_id, ())):
                where = f"{gate['name']} ({suite}, {gate['regime']})"
                typer.echo(f"    {answer_words(gate):15} {where}: {gate['sentence']}")


def _print_forecast(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {
        "member": "key",
        "round": "round",
        "runs": "runs",
        "machine": "machine",
        "train s": "train_s",
        "small-eval s": "small_eval_s",
        "full-eval s": "full_eval_s",
        "peak GiB": "peak_memory_gib",
        "USD with full-eval": "usd",
    }
    table = Table(*columns)
    for row in document["members"]:
        table.add_row(
            *(f"{row[k]:.2f}" if isinstance(row[k], float) else str(row[k]) for k in columns.values())
        )
    Console().print(table)
    for key, words in document["unmeasured"].items():
        typer.echo(f"{key} could not be measured and is counted as the costliest of what was:\n{words}")
    total = document["total"]
    typer.echo(
        f"{total['wall_s'] / 60:.1f} min on {document['workers']} workers, {total['worker_hours']:.2f} worker "
        f"hours, {total['usd']:.2f} USD for {total['jobs']} jobs, each billed {total['overhead_s']:.0f} s beside its "
        f"work, {total['spent_usd']:.2f} USD spent before; {total['full_evals']} full-evals, at most "
        f"{total['peak_memory_gib']:.2f} GiB a run; written rounds only, without early stops and healings"
    )
    if document["after_written_rounds"] is not None:
        typer.echo(document["after_written_rounds"]["sentence"])
    for words in total["crosses"]:
        typer.echo(f"warning: {words}")


def _track(wanted: bool, folder: Path) -> None:
    """A mirror beside the sweep; one that cannot start is told, and the sweep goes on."""
    from universal_simulator.tracking.mirror import start_detached

    reason = start_detached(folder) if wanted else None
    if reason is not None:
        typer.echo(reason, err=True)


def _outcome(folder: Path) -> None:
    from universal_simulator.sweep.fates import outcome
    from universal_simulator.sweep.report import report_path
    from universal_simulator.sweep.state import SweepState

    typer.echo(outcome(SweepState(folder)))
    typer.echo(f"report: {report_path(folder)}")
