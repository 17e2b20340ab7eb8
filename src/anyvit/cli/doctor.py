"""`anyvit doctor`: is this machine ready?"""

from __future__ import annotations

from anyvit.cli.show import JsonOption, show_json, show_table


def doctor(json: JsonOption = False) -> None:
    """Versions, devices, threads and fast paths; what is missing and how to install it."""
    import anyvit

    checks = anyvit.doctor()
    if json:
        show_json(checks)
    else:
        marks = {True: "ok", False: "missing", None: ""}
        show_table(("", "what", "found"), [(marks[check.ok], check.name, check.found) for check in checks])
