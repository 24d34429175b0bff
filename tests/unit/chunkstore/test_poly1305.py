"""The tags are RFC 8439's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from snapshotter.chunkstore.poly1305 import KEY_SIZE, Poly1305

KEY = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")  # RFC 8439, 2.5.2
MESSAGE = b"Cryptographic Forum Research Group"
TAG = bytes.fromhex("a8061dc1305136c6c22b8baf0c0127a9")


def test_a_tag_is_the_one_of_the_standard() -> None:
    assert Poly1305().tag(KEY, MESSAGE) == TAG


def test_a_part_of_memory_has_the_tag_of_its_bytes() -> None:
    memory = memoryview(bytearray(b"before" + MESSAGE + b"behind"))
    assert Poly1305().tag(KEY, memory[6 : 6 + len(MESSAGE)]) == TAG


def test_one_tag_says_nothing_about_the_next() -> None:
    poly1305 = Poly1305()
    other = poly1305.tag(bytes([1]) * KEY_SIZE, b"another message" * 10_000)
    assert poly1305.tag(KEY, MESSAGE) == TAG != other
    assert poly1305.tag(bytes([1]) * KEY_SIZE, b"another message" * 10_000) == other


def test_threads_do_not_disturb_each_other() -> None:
    poly1305 = Poly1305()
    messages = [bytes([number]) * 300_000 for number in range(16)]
    alone = [Poly1305().tag(KEY, message) for message in messages]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda message: poly1305.tag(KEY, message), messages * 8))
    assert together == alone * 8


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Poly1305().tag(KEY[1:], MESSAGE)
