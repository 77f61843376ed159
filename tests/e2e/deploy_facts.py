"""What the programs and their sources say, for tests of the files in deploy/."""

from __future__ import annotations

import functools
import re
import subprocess

from harness import REPO, SERVER, TOOLS

DEPLOY = REPO / "deploy"


@functools.cache
def help_of(*command: str) -> str:
    programs = {"osdn-server": SERVER, "osdn-tools": TOOLS}
    done = subprocess.run(
        [programs[command[0]], *command[1:], "--help"], capture_output=True, text=True, check=True
    )
    return done.stdout


@functools.cache
def flags_of(*command: str) -> frozenset[str]:
    """Flags of osdn-server, or of a subcommand of osdn-tools."""
    return frozenset(re.findall(r"^ +(?:-\w,)?(--[\w-]+)", help_of(*command), re.MULTILINE))


def exported_metrics() -> set[str]:
    """Names that server/metrics.cc gives its series."""
    return set(re.findall(r'"(osdn_\w+)"', (REPO / "server" / "metrics.cc").read_text()))


def documented_metrics() -> set[str]:
    """Names that docs/api.md lists under "Metrics"."""
    section = (REPO / "docs" / "api.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    return set(re.findall(r"\bosdn_\w+", section))


def family(series: str) -> str:
    """The metric that a series of a histogram belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", series)
