"""What an instance does by itself when nobody comes: the script it starts with.

The agent (`instance_agent`) watches for the driver while it lives, and every look of the driver touches a
file. This script, which the service runs at every start, looks whether that file was touched within the
last `silence_s` seconds, and else asks the service to stop the instance, with the key that the instance
has for itself alone. So one that was never reached stops as well. The script holds no key, only the names
of the variables that hold it there.
"""

from __future__ import annotations

import json

from universal_simulator.errors import UserError

_STOP = """
import json, os, urllib.request
url, number, key = {service}, os.environ.get("CONTAINER_ID", ""), os.environ.get("CONTAINER_API_KEY", "")
if number.isdigit() and key:
    urllib.request.urlopen(urllib.request.Request(
        url + "/api/v0/instances/" + number + "/", json.dumps({{"state": "stopped"}}).encode(),
        {{"Authorization": "Bearer " + key, "Content-Type": "application/json"}}, method="PUT"), timeout=30)
"""


def onstart_script(service: str, silence_s: float) -> str:
    """POSIX shell; returns at once and leaves the timer behind. UserError for an address with quotes."""
    if "'" in service:
        raise UserError("the address of the service holds a quote; mend VAST_URL")
    minutes = silence_s / 60
    stop = _STOP.format(service=json.dumps(service.rstrip("/")))
    return (
        "touch ~/.no_auto_tmux\n"
        f'(while sleep {silence_s:.0f}; do [ -n "$(find ~/usim/job/alive -mmin -{minutes:.2f})" ] || '
        f"python3 -c '{stop}'; done) >/dev/null 2>&1 &\n"
    )
