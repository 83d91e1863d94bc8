"""What the contract's jobs do: a program of many small ways to live and end.

errand.py say WORD ...        print each word on a line
errand.py exit CODE           end with an exit code
errand.py die SIGNAL          end by a signal
errand.py sleep PIDFILE       write the process id, then wait to be ended
errand.py count FILE TARGET   count FILE up to TARGET, from what it holds; a checkpointed run
errand.py memory GIB          fill that much memory
errand.py show NAME ...       print environment variables
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def count(path: Path, target: int) -> None:
    number = int(path.read_text()) if path.exists() else 0
    path.with_suffix(".pid").write_text(str(os.getpid()))
    print(f"from {number}", flush=True)
    while number < target:
        time.sleep(0.05)
        number += 1
        with open(path.with_suffix(".history"), "a") as history:
            history.write(f"{number}\n")
        partial = path.with_suffix(".partial")
        partial.write_text(str(number))
        os.replace(partial, path)


def main(verb: str, *words: str) -> None:
    if verb == "say":
        print(*words, sep="\n", flush=True)
    elif verb == "exit":
        sys.exit(int(words[0]))
    elif verb == "die":
        os.kill(os.getpid(), int(words[0]))
    elif verb == "sleep":
        Path(words[0]).write_text(str(os.getpid()))
        time.sleep(600)
    elif verb == "count":
        count(Path(words[0]), int(words[1]))
    elif verb == "memory":
        print(len(bytearray(int(float(words[0]) * 2**30))))
    elif verb == "show":
        print(*(f"{name}={os.environ.get(name, '')}" for name in words), sep="\n")
    else:
        sys.exit(f"no such errand: {verb}")


if __name__ == "__main__":
    main(*sys.argv[1:])
