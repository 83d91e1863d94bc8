"""Runs a command and ends all of its process group when the command or whoever started us ends.

    python -m universal_simulator.executors.group_guard FOLDER COMMAND ...

For programs whose own helpers survive them (Ray's agents do, when their head is killed). Standard
input must be a pipe from the one who started us: its end of file is their death, however they
died, and then FOLDER is removed as well. Leads a process group of its own.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time

from universal_simulator.executors.child_process import die_with_parent

GRACE_S = 1.0


def main(folder: str, *command: str) -> None:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    alone = False
    while child.poll() is None and not alone:
        alone = bool(select.select([sys.stdin], [], [], 0.2)[0])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    if alone:
        time.sleep(GRACE_S)
        shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
