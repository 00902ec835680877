"""Whether W&B is wanted (from WANDB_* variables and `wandb login`), whether it answers, and its words without keys."""

import json
import os
import re
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.params import secrets

Mode = Literal["online", "offline", "off"]

_PATIENCE = 10.0  # seconds for one question; uploads have their own, by their size
_OFFLINE = ("offline", "dryrun")
_SWITCHED_OFF = "switched off by WANDB_MODE or WANDB_DISABLED"
_LOGGED_OUT = "not logged in: run `wandb login`, or set WANDB_API_KEY"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_STATUS = {
    401: "401, it does not know this key (WANDB_API_KEY, or what `wandb login` kept)",
    403: "403, this key may not write to the project",
    429: "429, too many requests",
}
_kept_keys: set[str] = set()  # of `wandb login`, so that they are never shown


class WandbError(Exception):
    """W&B cannot do what was asked; the text says why and holds no key."""

    def __init__(self, text: object) -> None:
        super().__init__(" ".join(redacted(str(text)).split())[:300])


class RefusedError(WandbError):
    """W&B answers, and does not take this key."""


def mode() -> tuple[Mode, str]:
    """What the environment asks for, and where it is "off" why, in words. Imports nothing where that is plain."""
    if _switched_off():
        return "off", _SWITCHED_OFF
    if not os.environ.get("WANDB_PROJECT"):
        return "off", "WANDB_PROJECT not set"
    if os.environ.get("WANDB_MODE") in _OFFLINE:
        return "offline", ""
    return ("online", "") if key() else ("off", _LOGGED_OUT)


def key() -> str:
    """The key in WANDB_API_KEY, else the one that `wandb login` has kept for this server; "" where there is none."""
    if given := os.environ.get("WANDB_API_KEY"):
        return given
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    try:
        auth = wbauth.authenticate_session(host=base_url(), source="moe", prompt=False, update_session=False)
    except AuthenticationError:  # what was kept is no key
        return ""
    kept: str = getattr(auth, "api_key", "")
    _kept_keys.update({kept} - {""})
    return kept


def ask(query: str, patience: float = _PATIENCE, **variables: str) -> Any:
    """One GraphQL question, asked once. Returns its `data`; raises WandbError within about `patience` seconds.

    The SDK tries again for minutes and then says little, so before it is given work the server is asked this way.
    """
    import httpx

    base = base_url()
    try:
        answer = httpx.post(
            f"{base}/graphql",
            json={"query": query, "variables": variables},
            auth=("api", key()),
            timeout=patience,
        )
    except httpx.TimeoutException:
        raise WandbError(f"no answer from {base} within {patience:.0f} s") from None
    except httpx.HTTPError as error:
        raise WandbError(f"{base} cannot be reached: {error}") from None
    if answer.status_code != 200:
        kind = RefusedError if answer.status_code in (401, 403) else WandbError
        raise kind(f"{base} answers {_STATUS.get(answer.status_code, answer.status_code)}")
    try:
        body = answer.json()
        return body["data"]
    except (ValueError, KeyError):
        raise WandbError(f"{base} answers what is not W&B's: {answer.text[:100]}") from None


def base_url() -> str:
    """Where W&B is: WANDB_BASE_URL, or what the SDK's own settings say."""
    import wandb

    return (os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)).rstrip("/")


def entity(patience: float = _PATIENCE) -> str:
    """The team or user whose project it is. Raises WandbError where W&B does not answer or does not know the key."""
    viewer = (ask("query Viewer { viewer { entity } }", patience) or {}).get("viewer")
    if not viewer:
        raise RefusedError(_STATUS[401])
    return os.environ.get("WANDB_ENTITY") or viewer["entity"]


def api() -> Any:
    """A `wandb.Api` for the project of the environment. Raises UserError where it is not available."""
    if _switched_off():
        raise UserError(f"W&B: {_SWITCHED_OFF}, and this needs it")
    if os.environ.get("WANDB_MODE") in _OFFLINE:
        raise UserError("W&B: WANDB_MODE=offline, and this needs the server: unset WANDB_MODE")
    if not key():
        raise UserError(f"W&B: {_LOGGED_OUT}")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        overrides = {"entity": entity(), "project": os.environ.get("WANDB_PROJECT"), "base_url": base_url()}
    except WandbError as error:
        raise UserError(f"W&B: {error}. Nothing was changed; try again later") from None
    import wandb

    return wandb.Api(overrides=overrides, api_key=key(), timeout=30)


def _switched_off() -> bool:
    return os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")


def redacted(value: Any) -> Any:
    """What JSON can hold, without values of secret variables (…KEY…, …TOKEN…, …) and logins and keys in addresses."""
    text = json.dumps(value, ensure_ascii=False)
    found = {secret for name, secret in os.environ.items() if _SECRET_NAME.search(name) and len(secret) >= 8}
    for secret in found | _kept_keys:
        text = text.replace(json.dumps(secret, ensure_ascii=False)[1:-1], "***")
    return json.loads(secrets.redacted(text))
