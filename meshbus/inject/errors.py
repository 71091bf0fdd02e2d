"""Why a pod cannot be injected."""


class InjectionError(ValueError):
    """What was asked cannot be done; the message names the annotation, value or field."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message
