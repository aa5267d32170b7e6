"""Compare the pinned packages with published security advisories, by pip-audit in an environment of its own.

usage: python scripts/audit.py [lock=requirements.lock] [service=pypi|osv] [out=results/audit.json]

Needs a network: pip-audit is installed into a temporary environment, and the service is asked for each package. Exit
code 0 where no pin has an advisory, 1 where some have, 2 where the service does not answer for every package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.runs.run import ReadError
from scripts import options
from tasks.engine.provenance import now

SERVICES = ("pypi", "osv")
AUDITOR = "pip-audit>=2.10,<3"


def ask(lock: Path, service: str) -> Mapping[str, Any]:
    """Install pip-audit, ask the service and return what pip-audit reports.

    Raises:
        ReadError: No index or service can be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        install = [f"{folder}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", AUDITOR]
        installed = subprocess.run(install, capture_output=True, text=True)
        if installed.returncode:
            raise ReadError(f"{AUDITOR} cannot be installed: {last_line(installed.stderr)}")
        audit = [f"{folder}/bin/pip-audit", "-r", str(lock), "--require-hashes", "--disable-pip", "-s", service,
                 "-f", "json", "--progress-spinner", "off"]  # fmt: skip
        done = subprocess.run(audit, capture_output=True, text=True)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise ReadError(f"the advisories of {service} cannot be reached: {last_line(done.stderr)}") from None


def last_line(text: str) -> str:
    """Return the last line of a program's errors."""
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def advisories(report: Mapping[str, Any], service: str) -> list[str]:
    """Return a line for each advisory.

    Raises:
        ReadError: The service did not know some package: silence is not safety.
    """
    packages = report["dependencies"]
    if unknown := [package["name"] for package in packages if "skip_reason" in package]:
        raise ReadError(
            f"{service} answers for {len(packages) - len(unknown)} of {len(packages)} packages, not for "
            f"{', '.join(unknown[:3])}{' and others' if len(unknown) > 3 else ''}: nothing is known of those"
        )
    return [
        f"{package['name']} {package['version']}: {found['id']}, "
        + (f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet")
        for package in packages
        for found in package["vulns"]
    ]


def main(argv: Sequence[str]) -> int:
    """Print a line for each advisory, write the dated list and return the exit code."""
    defaults = {"lock": "requirements.lock", "service": "pypi", "out": options.results("audit.json")}
    values = options.parse(argv, options=defaults)
    lock, service = Path(values["lock"]), values["service"]
    if service not in SERVICES:
        raise ReadError(f"service is {service!r}; it must be one of {', '.join(SERVICES)}")
    if not lock.is_file():
        raise ReadError(f"lock={lock} is not there")
    report = ask(lock, service)
    lines = advisories(report, service)
    pins = {package["name"]: package["version"] for package in report["dependencies"]}
    print("\n".join([*lines, f"{len(pins)} packages, {len(lines)} advisories"]))
    out = Path(values["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"date": now(), "service": service, "advisories": lines, "packages": pins}
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
