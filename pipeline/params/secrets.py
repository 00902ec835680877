"""Logins and keys in addresses: parameters hold none, for dvc.lock, W&B, reports and the model card publish them."""

import re
from urllib.parse import unquote

_ADDRESS = re.compile(r"\w+://[^\s'\"<>]+")
_PAIR = re.compile(r"(?<=[?&#;])([^=&#;]+)=([^&#;]+)")
_SECRET = re.compile(r"key|token|secret|signature|credential|passw|pwd|^auth|^sig$|^jwt$", re.IGNORECASE)


def has_secrets(text: str) -> bool:
    """Whether a text is an address with a login, or with the value of a key, token or signature."""
    return bool(_ADDRESS.fullmatch(text)) and redacted(text) != text


def redacted(text: str) -> str:
    """The text with logins and values of keys in its addresses as ***."""
    return _ADDRESS.sub(lambda found: _without(found[0]), text)


def instead(host: str) -> str:
    """Where a login may stand, in words."""
    return (
        f"a login belongs in ~/.netrc, a token in the environment as {token_variable(host)}; what a signed address "
        "gives, fetch yourself, then take download=local"
    )


def token_variable(host: str) -> str:
    """The environment variable that holds the bearer token for a host: MOE_TOKEN_DATA_EXAMPLE_ORG."""
    return "MOE_TOKEN_" + re.sub(r"\W", "_", host).upper()


def _without(address: str) -> str:
    address = re.sub(r"(?<=://)[^/?#]*@", "***@", address, count=1)
    return _PAIR.sub(lambda pair: f"{pair[1]}=***" if _SECRET.search(unquote(pair[1])) else pair[0], address)
