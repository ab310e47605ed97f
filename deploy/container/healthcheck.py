"""Asks a server's grpc.health.v1 service whether it serves; the exit status is the answer.

usage: healthcheck.py HOST:PORT [SERVICE]
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0  # below the image's HEALTHCHECK timeout, so that the message is printed


def main(arguments: list[str]) -> int:
    """Returns 0 when the server serves, 1 when it does not, 2 for wrong usage."""
    if len(arguments) not in {1, 2}:
        print("usage: healthcheck.py HOST:PORT [SERVICE]", file=sys.stderr)
        return 2
    request = health_pb2.HealthCheckRequest(service=arguments[1] if len(arguments) == 2 else "")
    # A proxy meant for the outside must not be asked for the server next door.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(arguments[0], options=options) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            print(f"no health answer from {arguments[0]}: {error.code().name}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{arguments[0]}: {status}")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
