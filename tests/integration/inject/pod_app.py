"""An application of tests: HTTP on 8080, a TCP port 9090 that a request can close, gRPC health on
9091. It knows nothing of a mesh."""

import socket
import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
state = {"live": 200, "grpc": SERVING}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, body, headers = 200, b"hello", {}
        if self.path.startswith("/set/"):
            _, _, name, value = self.path.split("/")
            if name == "live":
                state["live"] = int(value)
            elif name == "grpc":
                state["grpc"] = SERVING if value == "1" else NOT_SERVING
            else:
                tcp.shutdown()
                tcp.server_close()
        elif self.path == "/live?full=1":
            status, body = state["live"], self.headers.get("x-probe", "").encode()
        elif self.path == "/moved":
            status, headers = 302, {"location": "/landed?x=1"}
        elif self.path == "/landed?x=1":
            body = b"landed"
        elif self.path == "/my-metrics":
            body = b"# TYPE my_app_total counter\nmy_app_total 7\n"
        elif self.path == "/client":
            body = self.client_address[0].removeprefix("::ffff:").encode()
        elif self.path == "/peer":
            body = self.headers.get("x-forwarded-client-cert", "").encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class TcpServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6


class Health(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: state["grpc"])


if __name__ == "__main__":
    tcp = TcpServer(("::", 9090), socketserver.BaseRequestHandler)
    threading.Thread(target=tcp.serve_forever, daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Health()])
    server.add_insecure_port("[::]:9091")
    server.start()
    Server(("::", 8080), Handler).serve_forever()
