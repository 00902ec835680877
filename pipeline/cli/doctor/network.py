"""Checks that ask servers: W&B, the Hugging Face Hub, DVC's remote, and the clock by what they answer. All are deep.

Who has chosen to be offline (WANDB_MODE, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE) is told so, and nothing is asked.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from email.utils import parsedate_to_datetime

import httpx
from huggingface_hub import constants, get_token

from pipeline import hub
from pipeline.cli.doctor import light
from pipeline.errors import UserError
from pipeline.tracking import server

_PATIENCE = 2.0  # seconds
_REMOTE_PATIENCE = 10.0  # DVC's clients look for credentials first, and try again
_SKEW, _FALSE = 60.0, 900.0  # seconds that a clock may be wrong; beyond the second, S3 refuses what is signed by it


def _wandb() -> str:
    mode, why = server.mode()
    if mode == "offline":
        return "offline (WANDB_MODE), not asked; runs stay in wandb/ until `wandb sync`"
    if mode == "off":
        return f"not asked: W&B is off ({why})"
    try:
        return f"{server.base_url()} knows the key; runs go to {server.entity(_PATIENCE)}"
    except server.RefusedError as error:
        raise UserError(f"{error}: wandb login --relogin, or set WANDB_API_KEY") from None
    except server.WandbError as error:
        raise UserWarning(f"{error}; check the network. Stages go on without, `moe mirror` sends later") from None


def _hub() -> str:
    endpoint, token = constants.ENDPOINT, get_token()
    if constants.HF_HUB_OFFLINE:
        return "offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE), not asked"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(f"{endpoint}/api/whoami-v2", headers=headers, timeout=_PATIENCE)
    except httpx.HTTPError as error:
        instead = "set HF_HUB_OFFLINE=1 to work with what is in the cache, or HF_ENDPOINT to a mirror"
        raise UserWarning(hub.words(error, instead)) from None
    if answer.status_code >= 500 or answer.status_code == 429:
        raise UserWarning(f"{endpoint} answers {answer.status_code}; try again later")
    if not token:
        return f"{endpoint} answers; not logged in"
    if answer.status_code in (401, 403):
        raise UserError(f"{endpoint} refuses this login ({answer.status_code}); {hub.LOGIN}")
    if answer.status_code != 200:
        raise UserWarning(f"{endpoint} answers {answer.status_code} to the question who is logged in")
    return f"{endpoint} knows the login, of {answer.json()['name']}"


def _remote() -> str:
    """Whether the folder or bucket of the default remote can be looked into."""
    with light.repository() as repo:
        if not (name := repo.config["core"].get("remote")):
            return "none is the default, not asked"
        remote = repo.cloud.get_remote()
    if remote.fs.protocol == "local":
        return f"{name} is a folder: no server"
    bucket, _, below = remote.path.partition("/")
    try:
        if _within(_REMOTE_PATIENCE, lambda: remote.fs.exists(remote.path)):
            return f"{name} answers"
        if not bucket or not below or _within(_REMOTE_PATIENCE, lambda: remote.fs.exists(bucket)):
            return f"{name} answers, and holds nothing yet"
    except PermissionError as error:
        raise UserError(f"{name} refuses this login ({error}); docs/sharing.md says where keys stand") from None
    except TimeoutError:
        raise UserWarning(f"{name}: no answer within {_REMOTE_PATIENCE:.0f} s; check the network") from None
    except Exception as error:  # each kind of remote has a client of its own, with errors of its own
        raise UserWarning(f"{name} cannot be looked into ({error}); check the network and its address") from None
    raise UserWarning(f"{name} answers that there is no {bucket}: create it, or ask for access to it")


def _within(seconds: float, ask: Callable[[], bool]) -> bool:
    """What `ask` returns or raises; TimeoutError where it takes longer. DVC's clients have no timeout in common."""
    answer: Future[bool] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(seconds)


def _clock() -> str:
    """By the Date in the answer of the first server that gives one; it has whole seconds."""
    servers = [] if constants.HF_HUB_OFFLINE else [constants.ENDPOINT]
    if server.mode()[0] == "online":
        servers.insert(0, server.base_url())
    if not servers:
        return "offline: no server was asked for the time"
    for address in servers:
        begun = time.time()
        try:
            headers = httpx.head(address, timeout=_PATIENCE).headers
        except httpx.HTTPError:
            continue
        if "Date" in headers:
            between = (begun + time.time()) / 2
            theirs = parsedate_to_datetime(headers["Date"]).timestamp() + 0.5 + int(headers.get("Age", 0))
            return _judged(between - theirs, address)
    raise UserWarning(f"not compared: no time came from {' or '.join(servers)}")


def _judged(skew: float, address: str) -> str:
    words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {address}"
    mend = "set it (timedatectl set-ntp true, or the system's settings)"
    if abs(skew) > _FALSE:
        raise UserError(f"{words}: logins and signed requests fail; {mend}")
    if abs(skew) > _SKEW:
        raise UserWarning(f"{words}; {mend}")
    return f"right to {max(1.0, abs(skew)):.0f} s by {address}"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("W&B server", _wandb),
    ("Hub server", _hub),
    ("DVC remote's server", _remote),
    ("clock", _clock),
)
