"""Every module can be imported alone: none works only because another was imported before it."""

import subprocess
import sys
from pathlib import Path

import mlx_email

PACKAGE = Path(mlx_email.__file__).parent

CHECK = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [known for known in sys.modules if known.startswith("mlx_email.")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""


def test_every_module_of_the_data_half_can_be_imported_first():
    paths = [path for folder in ("mail", "labels") for path in sorted((PACKAGE / folder).rglob("*.py"))]
    names = [".".join(("mlx_email", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in paths]
    names = [name.removesuffix(".__init__") for name in names]
    assert len(names) > 30
    done = subprocess.run([sys.executable, "-c", CHECK, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
