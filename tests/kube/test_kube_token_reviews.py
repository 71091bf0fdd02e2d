"""The API server is asked about tokens of pods, beside the keys that they are signed with."""

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from cluster import Cluster
from cryptography.hazmat.primitives.asymmetric import ec
from meshbus_ca.cluster_keys import issuer_of_answers
from meshbus_ca.service import CaService, CaSettings
from meshbus_ca.token_reviews import TokenReviews
from meshbus_ca.tokens import TokenKey

from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.kube.access import from_kubeconfig
from meshbus.kube.client import KubeClient
from meshbus.model.rows import Trust
from meshbus.runtime.process import make_context
from meshbus.runtime.settings import ProcessSettings, SettingsError
from meshbus.runtime.workload_tokens import AUDIENCE, TokenError, WorkloadToken, check_token

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Asked:
    """The ca's way to look at tokens, on a real API server."""

    def __init__(self, client: KubeClient, trust: Trust) -> None:
        self.trust = trust
        self.time = 0.0
        kubernetes: Any = SimpleNamespace(client=client)
        self._reviews = TokenReviews(kubernetes, lambda: self.time)

    async def accepts(self, token: str) -> WorkloadToken:
        said = check_token(token, self.trust, time.time())
        await self._reviews.confirm(token, said)
        return said

    async def refusal(self, token: str) -> TokenError:
        """Once what the API server itself remembers of the token (10 s) is forgotten."""
        async with asyncio.timeout(40):
            while True:
                self.time += 3600  # what was answered before is forgotten here
                try:
                    await self.accepts(token)
                except TokenError as error:
                    return error
                await asyncio.sleep(0.2)


async def asked(cluster: Cluster) -> tuple[Asked, KubeClient]:
    client = KubeClient(await from_kubeconfig(str(cluster.kubeconfig)))
    issuer = issuer_of_answers(
        await client.get("/.well-known/openid-configuration"), await client.get("/openid/v1/jwks")
    )
    own = TokenKey(ec.generate_private_key(ec.SECP256R1()))
    jwks = json.dumps({"keys": [own.jwk]})
    return Asked(client, Trust("cluster.local", "", jwks, "https://ca", issuers=(issuer,))), client


def pod(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    spec = {"serviceAccountName": "web", "containers": [{"name": "web", "image": "web"}]}
    metadata = {"name": name, "namespace": namespace}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    cluster.apply(document)
    return dict(cluster.get(f"/api/v1/namespaces/{namespace}/pods/{name}"))


async def test_a_token_that_was_taken_back_is_refused_although_its_signature_holds(
    cluster: Cluster, namespace: str
) -> None:
    account = {"name": "web", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    made = pod(cluster, namespace, "web-0")
    token = cluster.token(namespace, "web", audience=AUDIENCE, pod=made)
    ca, client = await asked(cluster)
    try:
        said = await ca.accepts(token)
        assert (said.namespace, said.service_account, said.instance) == (namespace, "web", "web-0")

        cluster.request(
            "DELETE", f"/api/v1/namespaces/{namespace}/pods/web-0", {"gracePeriodSeconds": 0}
        )
        assert check_token(token, ca.trust, time.time()), "by its signature it holds"
        refusal = await ca.refusal(token)
        assert "does not take" in str(refusal)
        assert not refusal.unavailable
    finally:
        await client.close()


async def test_an_api_server_that_is_away_is_no_refusal(own_cluster: Cluster) -> None:
    own_cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "web", "namespace": "default"},
        }
    )
    made = pod(own_cluster, "default", "web-0")
    token = own_cluster.token("default", "web", audience=AUDIENCE, pod=made)
    ca, client = await asked(own_cluster)
    try:
        await ca.accepts(token)
        own_cluster.kill("kube-apiserver")
        ca.time += 3600
        with pytest.raises(TokenError) as refused:
            await ca.accepts(token)
        assert refused.value.unavailable
    finally:
        own_cluster.start_api_server()
        await client.close()


def test_it_needs_a_cluster(tmp_path: Any) -> None:
    process = ProcessSettings(state=str(tmp_path), cluster="c")
    bus = MemoryBus(MemoryServer(), "ca")
    with pytest.raises(SettingsError, match="MESHBUS_CA_TOKEN_REVIEW"):
        CaService(make_context(CaService, CaSettings(token_review=True), process, bus))
