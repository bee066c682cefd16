"""Frames, links and steps as bytes: whole or not at all, and never a surprise."""

import socket
import struct
import threading
import time

import numpy as np
import pytest
import torch

from fewshard_core.values import TokenIds
from fewshard_kernels import MoeStats
from fewshard_models.sharding.shard import ShardOutput
from fewshard_serve.group.partition import Part, PartResult, deal
from fewshard_serve.group.transport import PING, Frame, Link, WireError, receive_frame, send_frame
from fewshard_serve.group.workers import Peer


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.settimeout(5)
    other.settimeout(5)
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 100_000], ids=["empty", "large"])
def test_a_frame_arrives_as_it_was_sent(pair, body):
    frame = Frame("step", {"lengths": [1, 2], "text": "ü"}, body)
    thread = threading.Thread(target=send_frame, args=(pair[0], frame))
    thread.start()
    assert receive_frame(pair[1]) == frame
    thread.join()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "closed"),
        (b"\x00\x00", "closed"),
        (struct.pack("!II", 5, 0) + b"{}", "closed"),
        (struct.pack("!II", 2, 0) + b"[]", "header"),
        (struct.pack("!II", 2, 0) + b"{}", "header"),
        (struct.pack("!II", 4, 0) + b"\xff\xfe{}", "header"),
        (struct.pack("!II", 2**31, 0), "none of ours"),
        (struct.pack("!II", 10, 2**31), "none of ours"),
    ],
)
def test_what_is_no_frame_is_refused(pair, sent, message):
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(WireError, match=message):
        receive_frame(pair[1])


def links(pair, **options):
    made = [Link(sock, send_timeout_s=1.0, **options) for sock in pair]
    seen = [[], []]
    for link, frames in zip(made, seen, strict=True):
        link.start(frames.append, lambda reason, frames=frames: frames.append(reason), "test")
    return made, seen


def wait_for(condition):
    give_up_at = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def fails(send):
    """What the link says once sending fails, as it must before long."""
    for _ in range(200):
        try:
            send()
        except WireError as error:
            return str(error)
        time.sleep(0.005)
    return ""


def test_a_link_answers_pings_and_passes_the_rest_on(pair):
    (one, other), seen = links(pair)
    heard_at = one.last_heard_at
    one.send(PING)
    wait_for(lambda: one.last_heard_at > heard_at)
    one.send(Frame("step", {"step": 1}))
    wait_for(lambda: seen[1])
    assert [frame.kind for frame in seen[1]] == ["step"]
    assert seen[0] == []
    other.close()
    wait_for(lambda: "closed" in seen[0])
    assert fails(lambda: one.send(PING))


def test_a_link_whose_other_end_reads_nothing_gives_up(pair):
    link = Link(pair[0], send_timeout_s=0.2)
    assert "cannot send" in fails(lambda: link.send(Frame("step", {}, bytes(2**20))))


def test_a_link_that_hears_nothing_ends_where_that_is_asked(pair):
    _, seen = links(pair, receive_timeout_s=0.1)
    wait_for(lambda: all(seen))
    assert any("cannot receive" in reasons[0] for reasons in seen), "one ends first, the other hears of it"


def test_a_reply_to_an_earlier_step_is_passed_over(pair):
    peer = Peer(None, None)
    peer.replies.put(Frame("failed", {"step": 3}))
    peer.replies.put(Frame("result", {"step": 4}))
    assert peer.reply_to(4, time.monotonic() + 1).kind == "result"
    assert peer.reply_to(5, time.monotonic() + 0.01) is None
    peer.replies.put(None)
    started_at = time.monotonic()
    assert [peer.reply_to(step, time.monotonic() + 5) for step in (6, 7)] == [None, None]
    assert time.monotonic() - started_at < 1, "who has gone is not waited for"


@pytest.mark.parametrize("has_types", [False, True])
def test_a_part_travels_whole(has_types):
    items = [TokenIds([5, 6, 7], [0, 0, 1] if has_types else None), TokenIds([8], [1] if has_types else None)]
    part = Part.from_frame(Part.of(9, 3, 20, items).to_frame())
    packed = part.packed(torch.device("cpu"))
    assert (part.step, part.generation, part.num_rows, packed.lengths) == (9, 3, 20, (3, 1))
    assert packed.input_ids.tolist() == [5, 6, 7, 8]
    assert (packed.token_type_ids is not None) == has_types
    if has_types:
        assert packed.token_type_ids.tolist() == [0, 0, 1, 1]
    nothing = Part.from_frame(Part.of(9, 3, 20, []).to_frame()).packed(torch.device("cpu"))
    assert (nothing.lengths, len(nothing.input_ids)) == ((), 0)


def test_a_result_travels_whole():
    torch.manual_seed(0)
    stats = [
        MoeStats(torch.randint(9, (5,)), torch.rand(5), torch.rand(()), torch.rand(())) for _ in range(2)
    ]
    result = PartResult.of(ShardOutput(torch.randn(3, 4), stats, torch.tensor([7, 8])), 0.25)
    frame = result.to_frame(6)
    back = PartResult.from_frame(frame)
    for name in ("logits", "tokens", "probability", "entropy", "computed"):
        ours, theirs = getattr(result, name), getattr(back, name)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.array_equal(ours, theirs)
    assert (back.seconds, frame.fields["step"]) == (0.25, 6)


def test_items_are_dealt_by_tokens_and_sorted():
    lengths = [3, 50, 4, 9, 8, 7, 1]
    hands = deal(lengths, 3)
    assert sorted(item for hand in hands for item in hand) == list(range(7))
    loads = [sum(lengths[item] for item in hand) for hand in hands]
    assert max(loads) == 50
    assert sum(loads) - 50 == 32
    assert abs(loads[1] - loads[2]) <= 2
    assert all([lengths[i] for i in hand] == sorted(lengths[i] for i in hand) for hand in hands)
    assert deal([7], 3) == [[0], [], []]
