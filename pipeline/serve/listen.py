"""Where the server listens, for whom, and how much it takes."""

from dataclasses import dataclass, field

from pipeline.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Listen:
    """Where the server listens and how much it takes; raises UserError for what is not allowed."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)  # that clients must send; needed where others can reach us
    batch: int = 16  # prompts that the model works on at once
    queue: int = 64  # prompts that may wait besides
    open_page: bool = False

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and self.token is None:
            raise UserError(
                f"--host {self.host}: others could use the model; set the environment variable MOE_SERVE_TOKEN to a "
                "secret that clients must send (openssl rand -hex 16 makes one), or leave --host out"
            )
        if self.token is not None and len(self.token) < 16:
            raise UserError("MOE_SERVE_TOKEN is shorter than 16 characters; openssl rand -hex 16 makes a good one")
        for name, value, least in (("--batch", self.batch, 1), ("--queue", self.queue, 1)):
            if value < least:
                raise UserError(f"{name} {value}; allowed: {least} or more")
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port}; allowed: 0 (any that is free) to 65535")

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """Names by which it may be called: any, where the token protects it."""
        return LOOPBACK if self.host in LOOPBACK else None
