"""An exported folder on the Hugging Face Hub: `moe push`.

    for name, size in push(Path("models/hf"), "me/stories", private=True, dry_run=True): ...

The token is that of `hf auth login` or HF_TOKEN, and is sent nowhere but to the Hub (HF_ENDPOINT, if that is set).
"""

import os
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from pipeline import hub
from pipeline.errors import UserError
from pipeline.export import card
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

    With `dry_run` nothing is sent, and no token is needed. Raises UserError for a folder that is no export or is
    damaged, a bad name, a missing or refused token, a repository that is public where `private` is asked, or no
    connection.
    """
    for needed in ("config.json", "README.md"):
        if not (folder / needed).is_file():
            raise UserError(f"{folder} has no {needed}; name a folder that the export stage wrote (models/hf)")
    card.refuse_damage(folder)
    with hub.in_words(repr(repo_id)):
        validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} names no repository; it looks like owner/name")
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files_below(folder)]
    if dry_run:
        return files
    if not (token := get_token()):
        raise UserError(f"{repo_id}: {hub.LOGIN}, with a token that may write (huggingface.co/settings/tokens)")
    _send(HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token), folder, repo_id, private)
    return files


def _send(api: HfApi, folder: Path, repo_id: str, private: bool) -> None:
    with hub.in_words(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise UserError(f"{repo_id} is there already and is public; push with --public, or name another")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload an exported model",
            delete_patterns=list(_OF_AN_EXPORT),
        )
