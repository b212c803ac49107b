"""Notes of a release: the section of CHANGELOG.md of the version that the package has.

``python .ci/release.py [TAG]`` prints them, and fails if the tag is not that version, or if the
version has no section or is still unreleased.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(changelog: str, version: str, tag: str = "") -> str:
    """Return the section of a version.

    Raises
    ------
    ValueError
        The tag is not "v" and the version; or a version with a tag has no section, or one that is
        marked as unreleased.
    """
    if tag and tag != f"v{version}":
        raise ValueError(f"The tag is {tag}, but the package has version {version}.")
    # Without a tag it is a rehearsal: the development version of 1.2.0 has the section of 1.2.0.
    wanted = version if tag else version.partition(".dev")[0]
    pattern = rf"^## {re.escape(wanted)}(?P<mark> [^\n]*)?\n(?P<text>.*?)(?=^## |\Z)"
    found = re.search(pattern, changelog, flags=re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no section {wanted}.")
    if tag and "unreleased" in (found["mark"] or ""):
        raise ValueError(f"CHANGELOG.md calls {wanted} unreleased. Write the date there.")
    return found["text"].strip() + "\n"


def main() -> None:
    """Print the notes of the version that the package has."""
    text = (ROOT / "fcm_estimators" / "_version.py").read_text(encoding="utf-8")
    version = re.findall(r'__version__ = "(.+)"', text)[0]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    try:
        sys.stdout.write(release_notes(changelog, version, *sys.argv[1:2]))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
