"""What can be called, derived from what people and platforms say: Service, EndpointSlice, Pod,
ServiceEntry, WorkloadEntry and Workload objects and reports of instances become `reg.*` rows.
"""

from meshbus.compile.registry.derive import Registry, rows_of_objects
from meshbus.compile.registry.instances import instance_of_report

__all__ = ["Registry", "instance_of_report", "rows_of_objects"]
