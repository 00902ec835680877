"""What the Hugging Face Hub refuses, and a missing network, in words: data sets, tokenizers and `moe push` share them.

with hub.in_words("tokenizer.path = 'openai-community/gpt2'", instead="give a local folder"):
    hf_hub_download(repo, name)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
from huggingface_hub import constants, errors

from pipeline.errors import UserError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_REFUSALS = {
    errors.HFValidationError: "this is no name of a repository; allowed: owner/name, of letters, digits, -, _ and .",
    errors.GatedRepoError: f"ask for access on its page at {constants.ENDPOINT}, then {LOGIN}",
    errors.RevisionNotFoundError: "the repository has no such revision (a commit, tag or branch)",
    errors.RepositoryNotFoundError: f"the Hub has no such repository; if it is private, {LOGIN}",
}
E = TypeVar("E", bound=BaseException)


@contextmanager
def in_words(what: str, instead: str = "") -> Iterator[None]:
    """Turn a failure of huggingface_hub into UserError("`what`: …"); what else is raised goes on.

    instead: what to do where the Hub cannot be reached, beside waiting for a network.
    """
    try:
        yield
    except Exception as error:
        if (said := words(error, instead)) is None:
            raise
        raise UserError(f"{what}: {said}") from None


def words(error: Exception, instead: str = "") -> str | None:
    """What a failure of huggingface_hub means and what to do; None for an exception of another kind."""
    for kind, said in _REFUSALS.items():
        if _find(error, kind):
            return said
    if answer := _find(error, errors.HfHubHTTPError):
        status = answer.response.status_code
        if status in (401, 403):
            return f"the Hub refuses this login ({status}); {LOGIN}, of an account that has access"
        return f"the Hub answered {status}: {answer.server_message or answer.response.reason_phrase}"
    alternative = f", or {instead}" if instead else ""
    missing = _find(error, errors.LocalEntryNotFoundError)
    if _find(error, errors.OfflineModeIsEnabled) or (missing and constants.HF_HUB_OFFLINE):
        return f"HF_HUB_OFFLINE is set, and the local cache does not have it; unset HF_HUB_OFFLINE{alternative}"
    if missing or _find(error, httpx.HTTPError) or _closed(error):
        cause = _find(error, httpx.HTTPError)
        why = f" ({type(cause).__name__})" if cause else ""
        return f"{constants.ENDPOINT} cannot be reached{why}; check the network{alternative}"
    return None


def may_pass(error: Exception) -> bool:
    """Whether asking again may help: no connection, or an answer of a Hub that is busy or down."""
    if answer := _find(error, errors.HfHubHTTPError):
        return answer.response.status_code >= 500 or answer.response.status_code in (408, 429)
    lost = _find(error, httpx.TransportError) or _find(error, errors.LocalEntryNotFoundError) or _closed(error)
    return bool(lost) and not constants.HF_HUB_OFFLINE


def _find(error: BaseException, kind: type[E]) -> E | None:
    """The exception or what caused it, where it is of a kind: huggingface_hub wraps some in others."""
    cause = error.__cause__
    return error if isinstance(error, kind) else _find(cause, kind) if cause else None


def _closed(error: Exception) -> bool:
    """After a failed connection huggingface_hub 1.3 closes its client, and asks with that one again."""
    return isinstance(error, RuntimeError) and "client has been closed" in str(error)
