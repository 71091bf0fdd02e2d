"""ProxyConfig: settings of proxies, by workload.

Source: https://istio.io/latest/docs/reference/config/networking/proxy-config/
"""

from typing import Annotated

from msgspec import UNSET, Meta

from meshbus.api.selectors import WorkloadSelector
from meshbus.api.shape import Maybe, Shape


class ProxyImage(Shape, frozen=True, kw_only=True):
    """Which image of the proxy is used."""

    image_type: str = ""
    """Variant of the image."""


class ProxyConfig(Shape, frozen=True, kw_only=True):
    """Settings that a proxy gets when it starts."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns; all of the namespace if unset."""
    concurrency: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """Worker threads; 0 means one per CPU."""
    environment_variables: Annotated[
        dict[str, Annotated[str, Meta(max_length=2048)]], Meta(max_length=256)
    ] = {}
    """Environment of the proxy."""
    image: Maybe[ProxyImage] = UNSET
    """Image of the proxy."""
