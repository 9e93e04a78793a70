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
    sympify = node("sympy.sympify", code)
    unpickle = node("builtins.bytes.fromhex", pickle.dumps(evil).hex())
    loaded = {"pretrained_model_name_or_path": str(folder), "trust_remote_code": True}
    later = {"_recursive_": False, "config": sympify}
    return {
        "os.system": node("os.system", touch),
        "subprocess": node("subprocess.check_output", ["touch", str(marker)]),
        "eval": node("builtins.eval", code),
        "exec": node("builtins.exec", code),
        "sympify": sympify,
        "torch.load": node("torch.load", f=str(folder / "evil.pt"), weights_only=False),
        "torch.hub": node("torch.hub.load", str(folder), "model", source="local"),
        "joblib": node("joblib.load", filename=str(folder / "evil.joblib")),
        "numpy": node("numpy.load", file=str(folder / "evil.npy"), allow_pickle=True),
        "pickle": node("pickle.loads", unpickle),
        "transformers": node("transformers.AutoConfig.from_pretrained", **loaded),
        "nested": node("builtins.dict", part=sympify),
        "as an argument": node("ppf.pruning.importance.Wanda", sympify),
        "partial": {**sympify, "_partial_": True},
        "by our modules": node("ppf.text.corpora.bz2.os.system", touch),
        "called later": node("hydra.utils.instantiate", **later),
    }


def node(target: str, *given: Any, **named: Any) -> dict[str, Any]:
    """A node that Hydra would instantiate."""
    return {"_target_": target, **({"_args_": [*given]} if given else {}), **named}
