"""Look up every installed package among the known vulnerabilities, and say plainly what came of it.

Run by `make audit-dependencies`, which gives it pip-audit in an environment of its own: what audits
is not among what is audited. Exit status: 0 all were looked up and nothing is known, 1 something
is, 2 not all of them could be looked up (no network), which is no clean bill.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2
SECONDS: Final = 600


def main(arguments: list[str]) -> int:
    """Audit the packages in the folder ``arguments[1]`` with the program ``arguments[0]``."""
    program, folder = arguments
    command = [program, "--path", folder, "--skip-editable", "--format", "json",
               "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return said(UNKNOWN, f"No answer within {SECONDS} seconds: try again with a network.")
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return said(UNKNOWN, f"The vulnerabilities could not be looked up: {last}")
    return judged(packages)


def judged(packages: list[dict[str, Any]]) -> int:
    """Say what was found about ``packages`` as pip-audit lists them; return the exit status."""
    skipped = [each for each in packages if "skip_reason" in each]
    # What is installed from a folder stands in no index.
    unknown = [each["name"] for each in skipped if "editable" not in each["skip_reason"]]
    asked = [each for each in packages if "skip_reason" not in each]
    found = [(each, vulnerability) for each in asked for vulnerability in each["vulns"]]
    for each, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no release yet"
        print(f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {fixed}")
    if found:
        return said(VULNERABLE, f"{len(found)} known vulnerabilities in {len(asked)} packages.")
    if unknown or not asked:
        return said(
            UNKNOWN,
            f"{len(unknown)} of {len(asked) + len(unknown)} packages could not be looked up, "
            f"{unknown[0] if unknown else 'nothing is installed'} among them: this is no clean "
            "bill; try again with a network.",
        )
    return said(CLEAN, f"No known vulnerability in {len(asked)} packages.")


def said(status: int, sentence: str) -> int:
    """Print a sentence and return the exit status."""
    print(sentence, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
