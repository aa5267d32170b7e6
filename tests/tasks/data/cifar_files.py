"""CIFAR-10's batch files, written byte by byte as Python 2 wrote the published ones."""

import struct

import numpy as np

from tasks.data.cifar import FILES, FOLDER


def text(value):
    """A string of Python 2: opcode, length, bytes."""
    data = value if isinstance(value, bytes) else value.encode()
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def python2_pickle(images, labels):
    """A batch file as published: protocol 2, plain strings, numpy under its old module name."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text("b") + b"\x87R"
    dtype = (
        b"cnumpy\ndtype\n"
        + text("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"".join(b"J" + struct.pack("<i", size) for size in images.shape) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(text(f"picture_{i}.png") for i in range(len(labels))) + b"e"
    entries = [("data", array), ("labels", numbers), ("batch_label", text("a batch")), ("filenames", names)]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries) + b"u."


def pictures(num, seed):
    generator = np.random.RandomState(seed)
    return generator.randint(0, 256, (num, 3072)).astype(np.uint8), (np.arange(num) + seed) % 10


def write_cifar10(root, *, num=4):
    """Write six batch files of so many pictures and return the folder that holds theirs."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for seed, name in enumerate([*FILES["train"], *FILES["val"]]):
        images, labels = pictures(num, seed)
        (folder / name).write_bytes(python2_pickle(images, labels.tolist()))
    return root
