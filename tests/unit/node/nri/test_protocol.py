"""Framing: whatever the parts in which bytes come, the messages are the same."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinwarden.node.nri.protocol import (
    MOST_BYTES,
    PLUGIN,
    REQUEST,
    RESPONSE,
    RUNTIME,
    Decoder,
    Message,
    ProtocolError,
    encode,
)

MESSAGES = st.builds(
    Message,
    st.sampled_from([PLUGIN, RUNTIME]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([REQUEST, RESPONSE]),
    st.binary(max_size=9000),
)


@given(sent=st.lists(MESSAGES, max_size=5), cuts=st.lists(st.integers(1, 5000), max_size=8))
def test_messages_in_any_parts_arrive_as_sent(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in sent)
    decoder = Decoder()
    received: list[Message] = []
    for cut in [*cuts, len(stream)]:
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    received += decoder.feed(stream)
    assert received == sent


def test_long_message_is_sent_in_frames_that_the_runtime_can_read() -> None:
    stream = encode(Message(PLUGIN, 1, REQUEST, bytes(10_000)))
    lengths = []
    while stream:
        lengths.append(int.from_bytes(stream[4:8]))
        stream = stream[8 + lengths[-1] :]
    assert max(lengths) <= 4096
    assert sum(lengths) == 10 + 10_000


def test_message_of_an_unknown_connection_is_ignored() -> None:
    other = encode(Message(7, 1, REQUEST, b"other"))
    wanted = Message(PLUGIN, 2, REQUEST, b"wanted")
    assert list(Decoder().feed(other + encode(wanted))) == [wanted]


@pytest.mark.parametrize(
    "stream",
    [
        PLUGIN.to_bytes(4) + (MOST_BYTES + 11).to_bytes(4),
        PLUGIN.to_bytes(4) + (10).to_bytes(4) + (MOST_BYTES + 1).to_bytes(4) + bytes(6),
    ],
    ids=["frame", "message"],
)
def test_too_long_part_ends_the_connection(stream: bytes) -> None:
    with pytest.raises(ProtocolError, match="too long"):
        list(Decoder().feed(stream))


def test_too_long_message_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        encode(Message(PLUGIN, 1, RESPONSE, bytes(MOST_BYTES + 1)))


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes) -> None:
    with suppress(ProtocolError):
        list(Decoder().feed(data))
