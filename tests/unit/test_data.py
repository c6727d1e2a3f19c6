"""What the tests compare volumes by."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.data import PIECE, digest


def test_a_digest_tells_the_bytes_and_not_what_is_allocated(tmp_path: Path) -> None:
    size = 40 * PIECE + 5
    content = bytearray(size)
    for start, length in ((0, 1), (3 * PIECE - 7, 20), (9 * PIECE, 2 * PIECE), (size - 1, 1)):
        content[start : start + length] = os.urandom(length - 1) + b"x"
    whole, sparse = tmp_path / "whole", tmp_path / "sparse"
    whole.write_bytes(content)
    with sparse.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 512):
            if any(piece := content[start : start + 512]):
                os.pwrite(file.fileno(), piece, start)
    assert digest(whole) == digest(sparse)
    for place in (0, 5 * PIECE, 10 * PIECE + 77, size - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        whole.write_bytes(changed)
        assert digest(whole) != digest(sparse)
    for other in (content + b"\0", content[:-1], bytes(PIECE) + content[:-PIECE]):
        whole.write_bytes(other)
        assert digest(whole) != digest(sparse)
