"""A second look at tokens of pods: the API server that gave them out is asked whether they hold.

Keys alone cannot say that a token was taken back: its pod or account deleted, its Secret gone. Who
wants that checked for each certificate pays with the API server being needed for it.

Source: https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
"""

from collections.abc import Callable

from meshbus.runtime.kubernetes import Kubernetes
from meshbus.runtime.workload_tokens import AUDIENCE, TokenError, WorkloadToken


class TokenReviews:
    """Asks about the tokens of one cluster; answers of a short while are remembered."""

    def __init__(self, kubernetes: Kubernetes, monotonic: Callable[[], float]) -> None:
        # Imported here: without Kubernetes nobody pays for its client.
        from meshbus.kube.reviews import Reviews

        self._reviews = Reviews(kubernetes.client, monotonic)

    async def confirm(self, token: str, said: WorkloadToken) -> None:
        """The API server says the same of a token as it says itself. Join tokens are not its own.

        Raises:
            TokenError: It does not, or cannot be asked.
        """
        from meshbus.kube.client import KubeError

        if said.joins:
            return
        try:
            caller = await self._reviews.caller(token, [AUDIENCE])
        except KubeError as error:
            text = f"the API server cannot be asked about the token: {error}"
            raise TokenError(text, unavailable=True) from error
        if caller is None:
            raise TokenError("the API server does not take the token")
        if caller.account != (said.namespace, said.service_account) or caller.pod != said.instance:
            raise TokenError("the API server knows the token as somebody else's")
