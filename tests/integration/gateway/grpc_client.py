"""A gRPC client without a proxy, in a process of its own: gRPC reads its bootstrap once.

    python grpc_client.py TARGET...

Each line on standard input is one call: a target and headers (`xds:///a:80 end-user=jason`); each
line on standard output its answer: the text of the server, or the status and its details.
"""

import sys

import grpc

METHOD = "/test.Echo/Say"


def main() -> None:
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        target, *headers = line.split()
        channel = channels.get(target)
        if channel is None:
            channel = channels[target] = grpc.insecure_channel(target)
        call = channel.unary_unary(METHOD)
        metadata = [tuple(header.split("=", 1)) for header in headers]
        try:
            answer = call(b"", timeout=30, metadata=metadata).decode()
        except grpc.RpcError as error:
            answer = f"{error.code().name} {error.details()}"
        print(answer.replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
