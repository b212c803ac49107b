"""Print the oldest version of every package that pyproject.toml allows, as constraints for pip.

torch is the exception: constraints.txt names its version.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"].values()
for line in sorted({*project["dependencies"], *(line for extra in extras for line in extra)}):
    floor = re.match(r"(?P<name>[\w.-]+)(\[.*\])?>=(?P<version>[\w.]+)", line)
    if floor and floor["name"] != "torch":
        sys.stdout.write(f"{floor['name']}=={floor['version']}\n")
