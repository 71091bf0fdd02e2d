"""The messages of `istio.v1.auth.IstioCertificateService`, by number and type.

Source: https://github.com/istio/api/blob/master/security/v1alpha1/ca.proto
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

_FIELD = descriptor_pb2.FieldDescriptorProto
_FILE = "meshbus/istio_v1_auth.proto"
METHOD_SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"


def _message(file: Any, name: str, fields: list[tuple[str, int, int, int, str]]) -> None:
    message = file.message_type.add(name=name)
    for field, number, kind, label, type_name in fields:
        added = message.field.add(name=field, number=number, type=kind, label=label)
        if type_name:
            added.type_name = type_name


def _load() -> tuple[Any, Any]:
    one, many = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(
        name=_FILE,
        package="istio.v1.auth",
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name],
    )
    _message(
        file,
        "IstioCertificateRequest",
        [
            ("csr", 1, _FIELD.TYPE_STRING, one, ""),
            ("validity_duration", 3, _FIELD.TYPE_INT64, one, ""),
            ("metadata", 4, _FIELD.TYPE_MESSAGE, one, ".google.protobuf.Struct"),
        ],
    )
    _message(
        file,
        "IstioCertificateResponse",
        [("cert_chain", 1, _FIELD.TYPE_STRING, many, "")],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"istio.v1.auth.{name}"))
        for name in ("IstioCertificateRequest", "IstioCertificateResponse")
    )  # type: ignore[return-value]


CertificateRequest, CertificateResponse = _load()
