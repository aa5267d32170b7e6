import gzip
import hashlib
import struct

import numpy as np
import pytest

from tasks.base import InputError
from tasks.data.idx import decompress, format_idx, parse_idx


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 5), (0,)])
def test_an_array_written_as_idx_reads_back(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(parse_idx(format_idx(array), "file"), array)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\x1f\x8b\x08\x01aaaa", "not an idx file"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"aaaa", "not an idx file"),  # type 13: floats
        (b"\0\0\x08\x03\0\0", "truncated"),
        (b"\0\0\x08\x01" + struct.pack(">I", 5) + b"aaaa", "truncated"),
        (b"\0\0\x08\x01" + struct.pack(">I", 3) + b"aaaa", "too long"),
    ],
)
def test_what_is_not_idx_is_refused_by_name(content, rule):
    with pytest.raises(InputError, match=f"labels.gz: .*{rule}"):
        parse_idx(content, "labels.gz")


def test_a_header_that_claims_more_than_memory_is_refused():
    header = b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**31, 2)
    with pytest.raises(InputError, match="truncated"):
        parse_idx(header + b"a", "file")


@pytest.mark.parametrize("kept", [0, 9, 30, -1])
def test_a_cut_gzip_file_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(bytes(range(200)))[:kept])
    with pytest.raises(InputError, match=r"cut.gz: not a complete gzip file"):
        decompress(path)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path = tmp_path / "file.gz"
    content = gzip.compress(b"abc")
    path.write_bytes(content)
    assert decompress(path, sha256=hashlib.sha256(content).hexdigest()) == b"abc"
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(InputError, match=r"file.gz: sha256 differs"):
        decompress(path, sha256=hashlib.sha256(content).hexdigest())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.gz: cannot be read"):
        decompress(tmp_path / "none.gz")
