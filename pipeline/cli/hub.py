"""An exported folder on the Hugging Face Hub: `moe push`.

    for name, size in push(Path("models/hf"), "me/stories", private=True, dry_run=True): ...

The token comes from HF_TOKEN and is sent nowhere but to the Hub (HF_ENDPOINT, if that is set).
"""

import os
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from pipeline.errors import UserError
from pipeline.hashing import files_below

# Files of an export that an earlier push may have left under names that this one does not have (other shards, a GGUF
# of another kind): loaders would pick them up. What else stands in the repository is its owner's and stays.
_OF_AN_EXPORT = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def push(folder: Path, repo_id: str, private: bool, dry_run: bool) -> list[tuple[str, int]]:
    """Upload every file of `folder` in one commit, making the repository if need be; return names and bytes.

    The same commit removes an earlier export's files that this one no longer has.

    With `dry_run` nothing is sent, and no token is needed. Raises UserError for a folder that is no export, a bad
    name, a missing or refused token, a repository that is public where `private` is asked, or no connection.
    """
    for needed in ("config.json", "README.md"):
        if not (folder / needed).is_file():
            raise UserError(f"{folder} has no {needed}; name a folder that the export stage wrote (models/hf)")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} names no repository: {error}; it looks like owner/name") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} names no repository; it looks like owner/name")
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_below(folder)]
    if dry_run:
        return files
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("HF_TOKEN is not set; make a token with write access at huggingface.co/settings/tokens")
    _send(HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token), folder, repo_id, private)
    return files


def _send(api: HfApi, folder: Path, repo_id: str, private: bool) -> None:
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise UserError(f"{repo_id} is there already and is public; push with --public, or name another")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload an exported model",
            delete_patterns=list(_OF_AN_EXPORT),
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{repo_id}: the Hub refuses this HF_TOKEN ({status}); it needs write access") from None
        raise UserError(
            f"{repo_id}: the Hub answered {status}: {error.server_message or error.response.reason_phrase}"
        ) from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set; unset it to push") from None
    except httpx.TransportError as error:
        raise UserError(
            f"no connection to {api.endpoint} ({type(error).__name__}); try again when there is one"
        ) from None
