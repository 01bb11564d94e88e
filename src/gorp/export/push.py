"""Upload an exported folder to the Hugging Face hub, with huggingface_hub's own functions."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gorp.errors import ConfigError, ExportError


def check_push(repo: str) -> None:
    """Check, before anything is computed, that an upload can be tried.

    Raises:
        ConfigError: If `repo` is not a valid name of a repository.
        ExportError: If there is no token, or the hub is switched off.
    """
    if repo.count("/") != 1:
        raise ConfigError(f"--push-to-hub {repo}: not the name of a repository. Wanted OWNER/NAME.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: not the name of a repository ({error}) Wanted OWNER/NAME.") from None
    if constants.HF_HUB_OFFLINE:
        raise ExportError("--push-to-hub: HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it.")
    if not get_token():
        raise ExportError("--push-to-hub: there is no token for the hub. Run `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Create the repository if there is none, upload the folder in one commit, and return the address of the commit.

    Args:
        folder: A complete export.
        repo: OWNER/NAME.
        private: Whether a new repository is private. An existing one stays as it is.

    Raises:
        ExportError: If the hub cannot be reached or refuses; the local folder is complete all the same.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {folder.name}")
    except Exception as error:  # of httpx, of the hub's answers, of files
        reason = " ".join(str(error).split()) or type(error).__name__
        token = get_token()
        reason = reason.replace(token, "…") if token else reason
        raise ExportError(
            f"{folder}: complete, but it cannot be uploaded to {repo} ({reason[:300]}). Upload it later with `hf "
            f"upload {repo} {shlex.quote(str(folder))}{' --private' if private else ''}`."
        ) from None
    return str(done.commit_url)
