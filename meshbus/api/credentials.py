"""Names of credentials: `credentialName` and `caCertCredentialName` of TLS settings.

Source: https://istio.io/latest/docs/reference/config/networking/gateway/#ServerTLSSettings
"""

CONFIG_MAP = "configmap://"
"""Begins the name of a ConfigMap with authorities: `configmap://NAMESPACE/NAME`."""
