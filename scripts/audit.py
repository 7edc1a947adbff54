"""Ask a database of known vulnerabilities about every version in constraints.txt, by pip-audit.

    python scripts/audit.py --pip_audit .venv/audit/bin/pip-audit        `make audit` does this

Exits 1 if a version has a known vulnerability. Where no database can be reached, or it knows none of the packages,
that is said in one line, and is no error: then nothing is known, neither good nor bad.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # this clone's packages, installed or not
from polydistill._environment import require_environment

require_environment("runs", "jsonargparse", "yaml")

import json
import subprocess
from dataclasses import dataclass

from polydistill.config import parse
from polydistill.errors import UserError, run_script


@dataclass(frozen=True)
class AuditConfig:
    """What is audited, and by which program.

    Args:
        file: versions, one a line.
        pip_audit: the program.
        timeout_seconds: for each question.
    """

    file: str = "constraints.txt"
    pip_audit: str = "pip-audit"
    timeout_seconds: int = 15


@run_script
def main(argv: list[str] | None = None) -> None:
    config = parse(AuditConfig, argv, program="audit.py", description=__doc__, default_name=None).config
    command = [config.pip_audit, "--requirement", config.file, "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", str(config.timeout_seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"not audited: {config.pip_audit} does not run or does not end ({type(error).__name__})")
        return
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:160]
        if "No such file" in reason:
            raise UserError(f"no such file: {config.file}") from None
        print(f"not audited: no database of vulnerabilities can be reached ({reason})")
        return
    audited = [package for package in packages if "vulns" in package]
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    if not audited:
        print(f"not audited: the database that is reached knows none of the {len(packages)} packages")
        return
    print(f"{len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
