"""EVENTS: CloudEvents for other people's programs."""

import datetime
import uuid
from typing import Any

import msgspec
import structlog

from meshbus.bus.interface import EVENTS, Bus, BusError
from meshbus.model.status import event_subject

log = structlog.get_logger("events")


def cloud_event(
    cluster: str, kind: str, namespace: str, name: str, verb: str, data: dict[str, Any]
) -> dict[str, Any]:
    """A CloudEvent 1.0 in JSON form.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
    """
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": f"/meshbus/{cluster}",
        "type": f"io.meshbus.{kind}.{verb}".lower(),
        "subject": f"{namespace}/{name}" if namespace else name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "data": data,
    }


async def publish_event(
    bus: Bus, cluster: str, kind: str, namespace: str, name: str, verb: str, data: dict[str, Any]
) -> bool:
    """Publish one. Events inform; a bus that is away must not stop who publishes: False then."""
    event = cloud_event(cluster, kind, namespace, name, verb, data)
    subject = event_subject(cluster, kind, namespace, name, verb)
    try:
        await bus.publish(EVENTS, subject, msgspec.json.encode(event))
    except BusError as error:
        log.warning("event not published", subject=subject, error=str(error))
        return False
    return True
