"""Injection: what makes a pod a workload of the mesh. Pure."""

from meshbus.inject.errors import InjectionError
from meshbus.inject.pod import Injected, Injector
from meshbus.inject.workloads import Owner, owner_of_document, owner_of_pod, template_path

__all__ = [
    "Injected",
    "InjectionError",
    "Injector",
    "Owner",
    "owner_of_document",
    "owner_of_pod",
    "template_path",
]
