"""Config nodes that run code when Hydra instantiates them; each leaves a marker file."""

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch


class Touch:
    """A pickle of it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def gadgets(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → node. All of them touch `folder/ran`."""
    marker, evil = folder / "ran", Touch(folder / "ran")
    touch, code = f"touch {marker}", f"__import__('pathlib').Path({str(marker)!r}).touch()"
    torch.save(evil, folder / "evil.pt")
    joblib.dump(evil, folder / "evil.joblib")
    np.save(folder / "evil.npy", np.array([evil], dtype=object), allow_pickle=True)
    (folder / "hubconf.py").write_text(f"def model():\n    {code}\n")
    (folder / "configuration.py").write_text(
        f"{code}\nfrom transformers import PreTrainedConfig\n\n\n"
        "class Config(PreTrainedConfig):\n    model_type = 'evil'\n"
    )
    (folder / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "configuration.Config"}}'
    )
    sympify = {"_target_": "sympy.sympify", "_args_": [code]}
    unpickle = {"_target_": "builtins.bytes.fromhex", "_args_": [pickle.dumps(evil).hex()]}
    return {
        "os.system": {"_target_": "os.system", "_args_": [touch]},
        "subprocess": {"_target_": "subprocess.check_output", "_args_": [["touch", str(marker)]]},
        "eval": {"_target_": "builtins.eval", "_args_": [code]},
        "exec": {"_target_": "builtins.exec", "_args_": [code]},
        "sympify": sympify,
        "torch.load": {
            "_target_": "torch.load",
            "f": str(folder / "evil.pt"),
            "weights_only": False,
        },
        "torch.hub": {
            "_target_": "torch.hub.load",
            "repo_or_dir": str(folder),
            "model": "model",
            "source": "local",
        },
        "joblib": {"_target_": "joblib.load", "filename": str(folder / "evil.joblib")},
        "numpy": {"_target_": "numpy.load", "file": str(folder / "evil.npy"), "allow_pickle": True},
        "pickle": {"_target_": "pickle.loads", "_args_": [unpickle]},
        "transformers": {
            "_target_": "transformers.AutoConfig.from_pretrained",
            "pretrained_model_name_or_path": str(folder),
            "trust_remote_code": True,
        },
        "nested": {"_target_": "builtins.dict", "part": sympify},
        "as an argument": {"_target_": "ppf.pruning.importance.Wanda", "_args_": [sympify]},
        "partial": {**sympify, "_partial_": True},
        "by our modules": {"_target_": "ppf.text.corpora.bz2.os.system", "_args_": [touch]},
        "called later": {
            "_target_": "hydra.utils.instantiate",
            "_recursive_": False,
            "config": sympify,
        },
    }
