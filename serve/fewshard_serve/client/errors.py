"""What a caller of the client has to catch."""

from fewshard_serve.errors import FewshardError


class ClientError(FewshardError):
    """The server did not answer, or refused; the message is the server's own where it gave one.

    `status` is None where no answer came. `server_code` is the server's stable word, "" where it gave none.
    """

    code = "client"

    def __init__(self, message: str, status: int | None = None, server_code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.server_code = server_code
