"""Whether what a worker says of a run can be true of the run that was asked for.

A run's id is a hash of config, data, code and seed. A record that names these can be held to the
id: a worker with other code, other data or another config cannot produce it by accident.
"""

from __future__ import annotations

from universal_simulator.identity import IDENTITY_DIGITS, code_version, run_identity
from universal_simulator.run_record import RunRecord

#: suites that are asked on the sweep's own data; PDEBench's are about a file of their own
OWN_SUITES = ("small_eval", "full_eval", "test")


def falsehoods(record: RunRecord, run_id: str, *, data_identity: str) -> list[str]:
    """What of a finished record contradicts its run, each in words; empty where it holds."""
    if record.run_id != run_id:
        return [f"the record is of {record.run_id}, not of {run_id}"]
    if record.status != "finished" or record.training is None:
        return [f"the job ended well, but its record says {record.status}"]
    found = []
    result = record.training.result
    if result.code_version != code_version():
        found.append(f"it was trained by other code ({result.code_version[:10]}, here {code_version()[:10]})")
    if result.data_identity != data_identity:
        found.append(f"it was trained on other data ({result.data_identity[:10]}, here {data_identity[:10]})")
    claimed = run_identity(
        result.config_name,
        config_hash=result.config_hash,
        data_identity=result.data_identity,
        seed=result.seed,
    )
    if not found and claimed[-IDENTITY_DIGITS:] != run_id[-IDENTITY_DIGITS:]:
        found.append(f"its config {result.config_hash[:10]} and seed {result.seed} are not those of {run_id}")
    for suite, evaluation in sorted(record.evaluations.items()):
        if evaluation.run_id != run_id:
            found.append(f"its {suite} is of {evaluation.run_id}")
        elif suite in OWN_SUITES and evaluation.result.protocol.dataset_identity != data_identity:
            found.append(f"its {suite} was asked on other data")
        elif suite in OWN_SUITES and evaluation.code_version != code_version():
            said = (evaluation.code_version or "not told")[:10]
            found.append(f"its {suite} was asked by other code ({said}, here {code_version()[:10]})")
    return found
