"""Rules of ProxyConfig.

Source: https://istio.io/latest/docs/reference/config/networking/proxy-config/
"""

from meshbus.api.networking.proxy_config import ProxyConfig
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_selector


@independent
def check(spec: ProxyConfig, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_selector(spec.selector, "spec.selector", out)
