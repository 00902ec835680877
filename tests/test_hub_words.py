"""Every failure of huggingface_hub is one sentence that says what to do."""

import httpx
import pytest
from huggingface_hub import errors

from pipeline import hub
from pipeline.errors import UserError


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx.Request("GET", "https://hub.example/me/stories")
    return kind("a page of text", response=httpx.Response(status, request=request))


def wrapped(cause: Exception) -> Exception:
    error = errors.LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said", "passes"),
    [
        (errors.HFValidationError("Repo id must be ..."), "no name of a repository", False),
        (answer(errors.GatedRepoError, 403), "ask for access", False),
        (answer(errors.RevisionNotFoundError, 404), "no such revision", False),
        (
            answer(errors.RepositoryNotFoundError, 401),
            "no such repository; if it is private, log in",
            False,
        ),
        (answer(errors.HfHubHTTPError, 401), "refuses this login", False),
        (answer(errors.DisabledRepoError, 403), "refuses this login", False),
        (answer(errors.BadRequestError, 400), "answered 400: Bad Request", False),
        (answer(errors.HfHubHTTPError, 429), "answered 429: Too Many Requests", True),
        (wrapped(answer(errors.HfHubHTTPError, 503)), "answered 503: Service Unavailable", True),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set", False),
        (
            wrapped(httpx.ConnectError("refused")),
            r"cannot be reached \(ConnectError\); check the network",
            True,
        ),
        (httpx.ReadTimeout("slow"), r"cannot be reached \(ReadTimeout\)", True),
        (httpx.TooManyRedirects("round and round"), r"cannot be reached \(TooManyRedirects\)", False),
        (RuntimeError("Cannot send a request, as the client has been closed."), "cannot be reached; check", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_of_the_hub_in_words(
    error: Exception, said: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=rf"^me/stories: .*{said}") as caught, hub.in_words("me/stories", "wait"):
        raise error
    assert "\n" not in str(caught.value)
    assert hub.may_pass(error) is passes


def test_what_is_not_the_hubs_goes_on() -> None:
    with pytest.raises(OSError, match="No space left"), hub.in_words("me/stories"):
        raise OSError(28, "No space left on device")
