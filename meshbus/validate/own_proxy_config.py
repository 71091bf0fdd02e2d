"""Rules of the annotation `proxy.istio.io/config`: fields of ProxyConfig for one proxy.

Source: https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#ProxyConfig
"""

from collections.abc import Mapping

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.validate.malformed import independent
from meshbus.validate.mesh_config import check_proxy
from meshbus.validate.mesh_support import OWN_PROXY_CONFIG as ANNOTATION
from meshbus.validate.report import Findings
from meshbus.validate.shape import read_shape

PATH = f"metadata.annotations[{ANNOTATION}]"


@independent
def check_own_proxy_config(annotations: Mapping[str, str], out: Findings) -> None:
    """What is wrong with the annotation, if there is one."""
    if ANNOTATION not in annotations:
        return
    try:
        held = read_yaml(annotations[ANNOTATION])
    except NotReadableError as error:
        out.error(PATH, str(error))
        return
    if held is None:
        return
    if not isinstance(held, dict):
        out.error(PATH, "must hold fields of ProxyConfig", "Type")
        return
    proxy = read_shape(MeshProxyConfig, held, PATH, out, proto_json=True)
    if proxy is not None:
        check_proxy(proxy, PATH, out)
