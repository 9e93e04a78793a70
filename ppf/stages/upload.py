"""Uploads a written model to the Hugging Face hub, only if `push_to_hub=` names a repository."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from omegaconf import DictConfig

from ppf.errors import PPFError, reason
from ppf.export.files import exported_files
from ppf.progress import say
from ppf.report.numbers import mebibytes


def check_upload(cfg: DictConfig) -> None:
    """Raises PPFError if `cfg.push_to_hub` names no repository, or nobody is logged in."""
    if not cfg.push_to_hub:
        return
    try:
        validate_repo_id(cfg.push_to_hub)
    except HFValidationError as error:
        raise PPFError(
            f"push_to_hub={cfg.push_to_hub} names no repository ({reason(error)}): give"
            " push_to_hub=NAME or push_to_hub=USER/NAME."
        ) from error
    if not cfg.push_to_hub_dry_run and not get_token():
        raise PPFError(
            "push_to_hub= needs an account: run `hf auth login`, or give push_to_hub_dry_run=true,"
            " which only lists the files."
        )


def upload(cfg: DictConfig) -> None:
    """Lists the model's files in `cfg.out`, and uploads them unless it is a dry run.

    Other files in the folder stay here. A new repository is private.

    Raises:
        PPFError: the upload fails.
    """
    if not cfg.push_to_hub:
        return
    folder, files = Path(cfg.out), exported_files(Path(cfg.out))
    names = [file.relative_to(folder).as_posix() for file in files]
    say(f"{'Would upload' if cfg.push_to_hub_dry_run else 'Uploading'} to {cfg.push_to_hub}:")
    for name, file in zip(names, files, strict=True):
        say(f"{mebibytes(file.stat().st_size):>12}  {name}")
    if cfg.push_to_hub_dry_run:
        return
    try:
        hub = HfApi()
        made = hub.create_repo(cfg.push_to_hub, private=True, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=names)
    except Exception as error:  # the network, the hub and its library raise many kinds
        raise PPFError(
            f"the model is in {folder}, but its upload to {cfg.push_to_hub} failed"
            f" ({reason(error)}): repeat it with `hf upload {cfg.push_to_hub} {folder}`."
        ) from error
    say(f"Uploaded: {made}")
