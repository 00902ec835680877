"""Whether W&B is wanted (from WANDB_* variables), whether it answers, and its words made fit to print."""

import os
import re
from typing import Any, Literal

from pipeline.errors import UserError

Mode = Literal["online", "offline", "off"]

_PATIENCE = 10.0  # seconds for one question; uploads have their own, by their size
_OFFLINE = ("offline", "dryrun")
_SWITCHED_OFF = "switched off by WANDB_MODE or WANDB_DISABLED"
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SECRET_IN_URL = re.compile(r"(?<=[?&])([\w.-]*(?:key|token|secret|signature|sig)=)[^&\s\"']+", re.IGNORECASE)
_STATUS = {
    401: "401, it does not know this WANDB_API_KEY",
    403: "403, this WANDB_API_KEY may not write to the project",
    429: "429, too many requests",
}


class WandbError(Exception):
    """W&B cannot do what was asked; the text says why and holds no key."""

    def __init__(self, text: object) -> None:
        super().__init__(" ".join(scrub(str(text)).split())[:300])


def mode() -> tuple[Mode, str]:
    """What the environment asks for, and where it is "off" why, in words."""
    if _switched_off():
        return "off", _SWITCHED_OFF
    offline = os.environ.get("WANDB_MODE") in _OFFLINE
    missing = [n for n in ("WANDB_API_KEY", "WANDB_PROJECT") if not os.environ.get(n) and not (offline and "KEY" in n)]
    if missing:
        return "off", f"{' and '.join(missing)} not set"
    return ("offline" if offline else "online"), ""


def ask(query: str, **variables: str) -> Any:
    """One GraphQL question, asked once. Returns its `data`; raises WandbError within about 10 seconds.

    The SDK tries again for minutes and then says little, so before it is given work the server is asked this way.
    """
    import httpx

    base = base_url()
    try:
        answer = httpx.post(
            f"{base}/graphql",
            json={"query": query, "variables": variables},
            auth=("api", os.environ.get("WANDB_API_KEY", "")),
            timeout=_PATIENCE,
        )
    except httpx.TimeoutException:
        raise WandbError(f"no answer from {base} within {_PATIENCE:.0f} s") from None
    except httpx.HTTPError as error:
        raise WandbError(f"{base} cannot be reached: {error}") from None
    if answer.status_code != 200:
        raise WandbError(f"{base} answers {_STATUS.get(answer.status_code, answer.status_code)}")
    try:
        body = answer.json()
        return body["data"]
    except (ValueError, KeyError):
        raise WandbError(f"{base} answers what is not W&B's: {answer.text[:100]}") from None


def base_url() -> str:
    """Where W&B is: WANDB_BASE_URL, or what the SDK's own settings say."""
    import wandb

    return (os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)).rstrip("/")


def entity() -> str:
    """The team or user whose project it is. Raises WandbError where W&B does not answer or does not know the key."""
    viewer = (ask("query Viewer { viewer { entity } }") or {}).get("viewer")
    if not viewer:
        raise WandbError(_STATUS[401])
    return os.environ.get("WANDB_ENTITY") or viewer["entity"]


def api() -> Any:
    """A `wandb.Api` for the project of the environment. Raises UserError where it is not to be had."""
    if _switched_off():
        raise UserError(f"W&B: {_SWITCHED_OFF}, and this needs it")
    if os.environ.get("WANDB_MODE") in _OFFLINE:
        raise UserError("W&B: WANDB_MODE=offline, and this needs the server: unset WANDB_MODE")
    if not os.environ.get("WANDB_API_KEY"):
        raise UserError("W&B: WANDB_API_KEY not set: export it first")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        overrides = {"entity": entity(), "project": os.environ.get("WANDB_PROJECT"), "base_url": base_url()}
    except WandbError as error:
        raise UserError(f"W&B: {error}. Nothing was changed; try again later") from None
    import wandb

    return wandb.Api(overrides=overrides, api_key=os.environ["WANDB_API_KEY"], timeout=30)


def _switched_off() -> bool:
    return os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")


def scrub(text: str) -> str:
    """The text without the values of secret variables (…KEY…, …TOKEN…, …) and without logins and keys in addresses."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return _SECRET_IN_URL.sub(r"\1***", _LOGIN_IN_URL.sub("***", text))


def scrubbed(value: Any) -> Any:
    """The same for every text in what JSON can hold."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: scrubbed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item) for item in value]
    return value
