"""An NRI plugin beside pinwarden's. Arguments: its index, the changed field, and a namespace.

`seccomp` sets a policy that allows everything, `env` a variable, in containers of the namespace.
"""

import socket
import sys

from pinwarden.node.nri import messages
from pinwarden.node.nri.protocol import PLUGIN, REQUEST, RESPONSE, RUNTIME, Decoder, Message, encode
from pinwarden.node.nri.wire import encode as message

index, field, namespace = sys.argv[-3:]
ADJUSTMENTS: dict[str, dict[int, object]] = {
    "seccomp": {6: message({6: message({1: "SCMP_ACT_ALLOW"})})},
    "env": {4: [message({1: "OTHER_PLUGIN", 2: "was here"})]},
}


def answer(method: str, payload: bytes) -> bytes:
    if method == "Configure":
        return messages.configured([messages.Event.CREATE_CONTAINER])
    if method == "Synchronize":
        more = messages.parse_synchronize(payload).more
        print("synchronized", flush=True)
        return messages.synchronized(more=more)
    if method == "CreateContainer" and messages.parse_create(payload)[0].namespace == namespace:
        return message({1: message(ADJUSTMENTS[field])})
    return b""


with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("/host/nri/nri.sock")
    registration = messages.register("other", index, 5.0)
    connection.sendall(encode(Message(RUNTIME, 1, REQUEST, registration)))
    decoder = Decoder()
    while data := connection.recv(65536):
        for received in decoder.feed(data):
            if received.connection == PLUGIN:
                response = messages.response(answer(*messages.parse_request(received.payload)))
                connection.sendall(encode(Message(PLUGIN, received.call, RESPONSE, response)))
