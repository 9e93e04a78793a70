"""llama.cpp as the npm package node-llama-cpp ships it, built for the CPU.

    python benchmarks/llama_cpp.py FILE.gguf [--prompt TEXT]

talks to a model; all options are those of `node-llama-cpp chat`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ppf.artefacts import get_or_make

VERSION = "3.22.1"
_LONGEST = 300  # seconds
BINARIES = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}


class UnavailableError(Exception):
    """llama.cpp is not available here; says why."""


class LlamaCpp:
    """Runs llama_cpp.mjs; the package is installed once, which takes 85 MB.

    Args:
        cache: folder to install it in.

    Raises:
        UnavailableError: node or npm is missing, or npm cannot install the package.
    """

    def __init__(self, cache: Path) -> None:
        node, npm = shutil.which("node"), shutil.which("npm")
        binary = BINARIES.get(platform.machine())
        if not (node and npm and binary and platform.system() == "Linux"):
            raise UnavailableError(
                "llama.cpp's npm package needs node and npm on Linux (x64, arm64)"
            )
        self.node = node
        packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{binary}@{VERSION}"]

        def install(draft: Path) -> None:
            draft.mkdir()
            command = [npm, "install", "--prefix", str(draft), "--no-audit", "--no-fund"]
            command += ["--ignore-scripts", "--omit=optional", *packages]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST)
            except subprocess.TimeoutExpired as error:
                raise UnavailableError(f"npm took longer than {_LONGEST} s") from error
            if done.returncode:
                raise UnavailableError(f"npm cannot install {packages[0]}: {done.stderr[-200:]}")

        def check(folder: Path) -> Path:
            (folder / "node_modules" / "node-llama-cpp").resolve(strict=True)
            return folder

        found = cache / f"node-llama-cpp-{VERSION}"
        self.folder = get_or_make(found, read=check, make=install)
        self.libraries = self.folder / "node_modules/@node-llama-cpp" / binary / "bins" / binary

    def __call__(self, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Requests and answers as llama_cpp.mjs lists them; with as many threads as PyTorch."""
        command = [self.node, str(Path(__file__).with_suffix(".mjs")), str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            command, input=json.dumps(wanted), capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Becomes the chat of node-llama-cpp."""
    program = LlamaCpp(Path(os.environ.get("PPF_CACHE", Path.home() / ".cache/ppf")))
    command = str(program.folder / "node_modules/.bin/node-llama-cpp")
    os.execv(program.node, [program.node, command, "chat", "--noHistory", *sys.argv[1:]])


if __name__ == "__main__":
    main()
