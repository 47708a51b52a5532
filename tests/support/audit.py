"""Compares lists of pinned packages with the known advisories: `make audit`."""

import json
import subprocess
import sys
from collections.abc import Iterator


def audit(tool: str, path: str) -> Iterator[str]:
    """Say how many packages of this list could be compared; then, beginning with "!", what is known of them."""
    command = [tool, "--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json", "-r", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    packages = json.loads(done.stdout)["dependencies"] if done.stdout else []
    compared = [package for package in packages if "vulns" in package]
    yield f"{path}: {len(compared)} of {len(packages)} packages were compared with the advisories"
    if not compared:
        yield f"{path}: NOTHING WAS COMPARED: the advisory service cannot be reached from here"
    for package in compared:
        for known in package["vulns"]:
            fixed = ", ".join(known["fix_versions"]) or "no version"
            yield f"! {path}: {package['name']} {package['version']}: {known['id']}, fixed in {fixed}"


if __name__ == "__main__":
    told = [line for path in sys.argv[2:] for line in audit(sys.argv[1], path)]
    print(*told, sep="\n")  # noqa: T201
    sys.exit(any(line.startswith("!") for line in told))
