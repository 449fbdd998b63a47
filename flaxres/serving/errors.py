"""The error of a request, and the error of a start."""


class RequestError(Exception):
    """A request that is refused: the response is `{"error": message}` with an HTTP status.

    Args:
      status: of the response, e.g. 400.
      message: one line with the value, the rule and the fix.
      headers: further headers of the response.
    """

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class StartError(ValueError):
    """A server that can't start: the message is one line with the value, the rule and the fix."""
