"""Content codings: which one is chosen, and that no body unpacks beyond its limit."""

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_serve.errors import MalformedRequest, TooLarge, UnsupportedMedia
from fewshard_serve.http.encoding import MAX_MEMBERS, choose_coding, pack, unpack

BIG = 100_000


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("accepted", "num_bytes", "coding"),
    [
        (None, BIG, None),
        ("", BIG, None),
        ("gzip", BIG, "gzip"),
        ("gzip", 10, "gzip"),
        ("deflate", 10, "deflate"),
        ("gzip, deflate", 10, None),
        ("gzip, deflate", BIG, "gzip"),
        ("deflate, gzip, br, zstd", BIG, "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", BIG, "deflate"),
        ("gzip;q=0, deflate", BIG, "deflate"),
        ("GZIP ; q=1.0", BIG, "gzip"),
        ("gzip;q=0", BIG, None),
        ("gzip;q=0, *", BIG, "deflate"),
        ("*", BIG, "gzip"),
        ("br", BIG, None),
        ("identity", BIG, None),
        ("identity, gzip;q=0.5", BIG, None),
        ("identity;q=0.5, gzip", BIG, "gzip"),
        ("gzip;q=high", BIG, None),
        ("gzip;level=9", BIG, "gzip"),
        (",,;,q=;", BIG, None),
    ],
)
def test_the_coding_is_the_clients_choice(accepted: str | None, num_bytes: int, coding: str | None) -> None:
    assert choose_coding(accepted, num_bytes) == coding


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_what_is_packed_unpacks(body: bytes, coding: str) -> None:
    assert unpack(pack(body, coding), coding, 2000) == body


def test_packed_bodies_are_what_clients_unpack() -> None:
    assert gzip.decompress(pack(b"body", "gzip")) == b"body"
    assert zlib.decompress(pack(b"body", "deflate")) == b"body"


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", " gzip "])
def test_gzip_has_many_names(coding: str) -> None:
    assert unpack(gzip.compress(b"body"), coding, 10) == b"body"


def test_gzip_may_have_several_members() -> None:
    """As `cat a.gz b.gz` and bgzip write it (RFC 1952, 2.2)."""
    members = [b"two ", b"members", b"x" * 3 * BIG]
    packed = b"".join(map(gzip.compress, members))
    assert unpack(packed, "gzip", 4 * BIG) == b"".join(members)
    with pytest.raises(TooLarge, match="max_body_bytes"):
        unpack(packed, "gzip", 3 * BIG)
    for damaged in (packed[:-1], packed + b"x", packed + gzip.compress(b"")[:5]):
        with pytest.raises(MalformedRequest):
            unpack(damaged, "gzip", 4 * BIG)


def test_members_are_counted() -> None:
    empty = gzip.compress(b"")
    assert unpack(empty * MAX_MEMBERS, "gzip", 1) == b""
    with pytest.raises(MalformedRequest, match=f"more than {MAX_MEMBERS} gzip streams"):
        unpack(empty * (MAX_MEMBERS + 1), "gzip", 1)


def test_deflate_has_one_stream() -> None:
    with pytest.raises(MalformedRequest, match="more than 1 deflate"):
        unpack(zlib.compress(b"a") * 2, "deflate", 10)


@pytest.mark.parametrize("coding", ["zstd", "br", "compress", "gzip, gzip"])
def test_other_codings_are_refused_with_those_that_are_read(coding: str) -> None:
    with pytest.raises(UnsupportedMedia, match="send gzip, deflate or none"):
        unpack(b"x", coding, 10)


def test_deflate_is_zlib_or_raw() -> None:
    assert unpack(zlib.compress(b"body"), "deflate", 10) == b"body"
    assert unpack(raw_deflate(b"body"), "deflate", 10) == b"body"


def test_no_coding_leaves_the_body() -> None:
    assert unpack(b"body", "identity", 10) == b"body"
    assert unpack(b"body", "", 10) == b"body"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, deflate", "x" * 1000])
def test_other_codings_are_unsupported(coding: str) -> None:
    with pytest.raises(UnsupportedMedia, match="send gzip, deflate or none"):
        unpack(b"body", coding, 10)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_stops_at_the_limit(coding: str) -> None:
    packed = pack(b"\0" * 50_000_000, coding)
    tracemalloc.start()
    with pytest.raises(TooLarge, match="max_body_bytes"):
        unpack(packed, coding, 1000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_the_limit_itself_is_allowed(coding: str) -> None:
    assert len(unpack(pack(b"x" * 1000, coding), coding, 1000)) == 1000
    with pytest.raises(TooLarge):
        unpack(pack(b"x" * 1001, coding), coding, 1000)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("damage", [b"", b"\x1f", b"\x78", b"garbage" * 5, None, b"cut", b"more"])
def test_damage_is_malformed(coding: str, damage: bytes | None) -> None:
    whole = pack(bytes(range(256)), coding)
    broken = {None: b"\0" + whole, b"cut": whole[:-3], b"more": whole + b"x"}.get(damage, damage)
    assert broken is not None
    with pytest.raises(MalformedRequest):
        unpack(broken, coding, 1000)
