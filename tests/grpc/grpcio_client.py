"""Calls demo.v1.Orders with grpcio, and prints what it sees as JSON, one line for each call.

    grpcio_client.py ADDRESS METADATA calls|streams|retry|example

METADATA is a list of pairs for each of the four calls.
"""

import json
import sys
import threading
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

PATIENCE = 30
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "grpc"))
messages, services = grpc.protos_and_services("orders.proto")

RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def say(*what):
    print(json.dumps(what), flush=True)


def seen(error):
    """The same facts as `Seen` of the tests."""
    metadata = dict(error.trailing_metadata() or [])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
    pushback = metadata.get("grpc-retry-pushback-ms")
    for_http = ["www-authenticate", "retry-after"]
    return {
        "code": error.code().value[0],
        "message": error.details(),
        "reason": info.reason,
        "domain": info.domain,
        "details": dict(info.metadata),
        "retry": retry.retry_delay.ToMilliseconds() if has_retry else None,
        "pushback": int(pushback) if pushback else None,
        "has_rate_limit": "ratelimit" in metadata,
        "superfluous": [name for name in for_http if name in metadata],
    }


def outcome(call):
    """What a call or the rest of a stream ended with: `None` if it did without an error."""
    try:
        call()
    except grpc.RpcError as error:
        return seen(error)
    return None


def requests(*ids, until=None):
    for id in ids:
        yield messages.GetRequest(id=id)
    if until:
        until.wait(PATIENCE)


class Orders:
    def __init__(self, channel, metadata):
        self.stub = services.OrdersStub(channel)
        self.options = {"metadata": metadata, "timeout": PATIENCE}

    def get(self):
        return self.stub.Get(messages.GetRequest(id="7"), **self.options)

    def delete(self):
        return self.stub.Delete(messages.DeleteRequest(id="7"), **self.options)

    def watch(self):
        return self.stub.Watch(messages.WatchRequest(), **self.options)

    def total(self, *ids, until=None):
        return self.stub.Total(requests(*ids, until=until), **self.options)

    def lookup(self, *ids, until=None):
        return self.stub.Lookup(requests(*ids, until=until), **self.options)


def calls(get, watch, total, lookup):
    say("Get", outcome(get.get))
    say("Watch", outcome(lambda: next(watch.watch())))
    say("Total", outcome(lambda: total.total("1", "2")))
    say("Lookup", outcome(lambda: list(lookup.lookup("1", "2"))))


def streams(orders):
    """Says when all streams have begun, and then how they ended."""
    end = threading.Event()
    watch, lookup = orders.watch(), orders.lookup("1", until=end)
    total = orders.stub.Total.future(requests("1", until=end), **orders.options)
    next(watch), next(lookup)
    say("begun", None)
    say("Watch", outcome(lambda: list(watch)))
    say("Lookup", outcome(lambda: list(lookup)))
    say("Total", outcome(total.result))
    end.set()


def reflected(channel):
    """Whether the server describes itself as the .proto file does."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    wanted = reflection_pb2.ServerReflectionRequest(file_containing_symbol="demo.v1.Orders")
    [answer] = stub.ServerReflectionInfo(iter([wanted]), timeout=PATIENCE)
    [file] = answer.file_descriptor_response.file_descriptor_proto
    files = descriptor_pb2.FileDescriptorProto.FromString(file), descriptor_pb2.FileDescriptorProto()
    messages.DESCRIPTOR.CopyToProto(files[1])
    for file in files:
        for message in file.message_type:
            for field in message.field:
                # Compilers may leave it out.
                field.ClearField("json_name")
    return files[0] == files[1]


def example(channel, orders, anonymous):
    say("reflection", reflected(channel))
    health = health_pb2_grpc.HealthStub(channel)
    for service in ["", "demo.v1.Orders"]:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        say("health", answer.status == health_pb2.HealthCheckResponse.SERVING)
    say("Get", orders.get().cents)
    say("anonymous", outcome(anonymous.get))
    say("Delete", outcome(orders.delete))
    say("Watch", next(orders.watch()).cents)
    say("Total", orders.total("1", "2").cents)
    say("beyond", outcome(orders.get))


def main():
    address, metadata, what = sys.argv[1:]
    options = [("grpc.service_config", json.dumps(RETRIES))] if what == "retry" else []
    with grpc.insecure_channel(address, options=options) as channel:
        metadata = [[tuple(pair) for pair in call] for call in json.loads(metadata)]
        orders = [Orders(channel, call) for call in metadata]
        if what == "calls":
            calls(*orders)
        elif what == "streams":
            streams(orders[0])
        elif what == "retry":
            say("Get", outcome(orders[0].get))
        else:
            example(channel, orders[0], Orders(channel, []))


main()
