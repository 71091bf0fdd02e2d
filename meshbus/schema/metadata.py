"""Schemas of Kubernetes' own that every kind uses, in our words.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/
"""

from typing import Any

OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
DELETE_OPTIONS = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
STATUS = "io.k8s.apimachinery.pkg.apis.meta.v1.Status"
PATCH = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _time(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "date-time", "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "integer", "format": "int64", "description": description}


def _strings(description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": {"type": "string"},
    }


def _object(description: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "description": description, "properties": properties}


def shared_schemas() -> dict[str, Any]:
    """By the names that Kubernetes gives them."""
    owner = _object(
        "An object that this one belongs to.",
        apiVersion=_text("Its version."),
        kind=_text("Its kind."),
        name=_text("Its name."),
        uid=_text("Its uid."),
        controller={"type": "boolean", "description": "Whether it manages this one."},
        blockOwnerDeletion={"type": "boolean", "description": "Whether it waits for this one."},
    )
    owner["required"] = ["apiVersion", "kind", "name", "uid"]
    managed = _object(
        "Fields that one manager set.",
        manager=_text("Who."),
        operation=_text("`Apply` or `Update`."),
        apiVersion=_text("Version of the fields."),
        time=_time("When."),
        fieldsType=_text("`FieldsV1`."),
        fieldsV1={
            "type": "object",
            "description": "The fields.",
            "x-kubernetes-preserve-unknown-fields": True,
        },
        subresource=_text("By which subresource."),
    )
    return {
        OBJECT_META: _object(
            "Metadata of every object.",
            name=_text("Name, unique in its namespace."),
            generateName=_text("Beginning of a name that the server completes."),
            namespace=_text("Namespace; `default` if empty."),
            labels=_strings("Labels, by which objects are selected."),
            annotations=_strings("Annotations, for tools."),
            uid=_text("Tells apart objects that had the same name; read-only."),
            resourceVersion=_text("Version of the object: the change that wrote it."),
            generation=_number("Grows when the content changes; read-only."),
            creationTimestamp=_time("When it was created; read-only."),
            deletionTimestamp=_time("When its deletion was asked for; read-only."),
            deletionGracePeriodSeconds=_number("Seconds until it goes; read-only."),
            finalizers={
                "type": "array",
                "description": "What must be done before it goes.",
                "items": {"type": "string"},
                "x-kubernetes-list-type": "set",
                "x-kubernetes-patch-strategy": "merge",
            },
            ownerReferences={
                "type": "array",
                "description": "Objects that it belongs to.",
                "items": owner,
                "x-kubernetes-list-map-keys": ["uid"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "uid",
                "x-kubernetes-patch-strategy": "merge",
            },
            managedFields={
                "type": "array",
                "description": "Who set which fields.",
                "items": managed,
                "x-kubernetes-list-type": "atomic",
            },
            selfLink=_text("Not used."),
        ),
        LIST_META: _object(
            "Metadata of a list.",
            resourceVersion=_text("Version of the list, to watch from."),
            remainingItemCount=_number("Objects that are left."),
            selfLink=_text("Not used."),
            **{"continue": _text("Where the next part begins.")},
        ),
        DELETE_OPTIONS: _object(
            "How an object is deleted.",
            apiVersion=_text("`v1`."),
            kind=_text("`DeleteOptions`."),
            dryRun={
                "type": "array",
                "description": "`All`: nothing is deleted.",
                "items": {"type": "string"},
            },
            gracePeriodSeconds=_number("Seconds until it goes."),
            propagationPolicy=_text("`Orphan`, `Background` or `Foreground`."),
            preconditions=_object(
                "What must hold.", uid=_text("Its uid."), resourceVersion=_text("Its version.")
            ),
        ),
        STATUS: _object(
            "How a request ended.",
            apiVersion=_text("`v1`."),
            kind=_text("`Status`."),
            metadata={"$ref": f"#/components/schemas/{LIST_META}"},
            status=_text("`Success` or `Failure`."),
            message=_text("For people."),
            reason=_text("For programs."),
            code={"type": "integer", "format": "int32", "description": "HTTP status."},
            details={
                "type": "object",
                "description": "What it is about.",
                "x-kubernetes-preserve-unknown-fields": True,
            },
        ),
        PATCH: {"type": "object", "description": "Changes, in the form that Content-Type names."},
    }
