"""Files as an attacker or a broken disk makes them, and what reading one may do at the most."""

import io
import pickle
import random
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conftest import as_objects, case_arrays
from utils.formats.case import read_case
from utils.formats.npz import CaseError

KEYS = ("imgs", "spacing", "boxes", "clicks", "clicks_order", "prev_pred")
VARIANTS = 20  # of each file that is made up
MAX_SECONDS = 5.0  # for a file; they have at most some 100 kB
MAX_GROWTH_GB = 0.5  # of the process, over all files
# Events of Python's audit of which reading a file may raise none.
FORBIDDEN = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "pickle.find_class")


def members() -> dict[str, bytes]:
    """Those of a valid case that has all keys."""
    clicks = as_objects([{"fg": [[1, 2, 3]], "bg": []}, {"fg": [], "bg": [np.array([4, 5, 6])]}])
    order = as_objects([["fg"], ["bg"]])
    arrays = case_arrays(clicks=clicks, clicks_order=order)
    arrays["prev_pred"] = (arrays["imgs"] > 127).astype(np.uint8)
    content = {}
    for key, value in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value)
        content[f"{key}.npy"] = buffer.getvalue()
    return content


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


VALID = members()
WHOLE = zipped(VALID)
SIZES = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**32, 2**62, 10**30]))
NUMBERS = st.one_of(
    st.integers(-3, 30), st.sampled_from([2**63, -(10**40)]), st.floats(), st.booleans()
)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), NUMBERS, st.sampled_from(["fg", "bg", "z_min", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner, inner),
        st.dictionaries(st.sampled_from(["fg", "bg", "z_min", "z_mid_x_max"]), inner, max_size=4),
    ),
    max_leaves=12,
)
OPCODES = st.one_of(
    st.sampled_from([bytes([code]) for code in range(256)]),
    st.sampled_from(
        [
            b"\x80\x04",
            b"cnumpy\nndarray\n",
            b"cnumpy\ndtype\n",
            b"cnumpy._core.multiarray\n_reconstruct\n",
            b"cnumpy._core.multiarray\nscalar\n",
            b"cos\nsystem\n",
            b"cbuiltins\neval\n",
            b"X\x04\x00\x00\x00echo",
            b"\x8c\x02O8",
            b"\x8c\x02i8",
            b"K\x01K\x00\x85C\x01b\x87R",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"r\xff\xff\xff\x7f",
            b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        ]
    ),
    st.binary(max_size=6),
)


def edited(whole: bytes, rng: random.Random) -> bytes:
    """Bytes changed, lost, repeated and added at some places."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(content) + 1)
        match rng.randrange(8):
            case 0 | 1 | 2 | 3 | 4 if i < len(content):
                content[i] = rng.randrange(256)
            case 5:
                del content[i : i + rng.randint(1, 64)]
            case 6:
                j = rng.randrange(len(content) + 1)
                content[i:i] = content[j : j + rng.randint(1, 64)]
            case _:
                content[i:i] = rng.randbytes(rng.randint(1, 16))
    return bytes(content)


@st.composite
def headers(draw: Any) -> bytes:
    """A .npy array whose header claims what it likes."""
    shape = tuple(draw(st.lists(SIZES, max_size=4)))
    descr = draw(
        st.sampled_from(["|u1", "<f4", "<f8", "<i8", "|b1", "|O", "<U3", "<c8", "|V9", "|S0", "x"])
    )
    text = draw(
        st.one_of(
            st.just(repr({"descr": descr, "fortran_order": draw(st.booleans()), "shape": shape})),
            st.text(max_size=40),
            st.sampled_from(["{" * 3000, "(" * 300, "__import__('os').system('true')"]),
        )
    ).encode("latin1", "replace")
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"]))
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + draw(st.binary(max_size=80))


@st.composite
def pickled(draw: Any) -> bytes:
    """A .npy array of objects: any plain values, or any opcodes."""
    if draw(st.booleans()):
        data = pickle.dumps(as_objects(draw(st.lists(PLAIN, max_size=3))), draw(st.integers(2, 5)))
    else:
        data = b"".join(draw(st.lists(OPCODES, max_size=30))) + draw(st.sampled_from([b".", b""]))
    header = repr({"descr": "|O", "fortran_order": False, "shape": (draw(st.integers(0, 3)),)})
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@st.composite
def files(draw: Any) -> list[bytes]:
    """Contents of files that are called .npz: one member or two are made up, then bytes change."""
    content = dict(VALID)
    names = st.sampled_from([f"{key}.npy" for key in KEYS])
    for name in draw(st.lists(names, min_size=1, max_size=2, unique=True)):
        made = draw(st.one_of(headers(), pickled(), st.none()))
        if made is None:
            del content[name]
        else:
            content[name] = made
    method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    made_up = [zipped(content, method)]
    for _ in range(VARIANTS):
        match rng.randrange(3):
            case 0:  # the archive
                made_up.append(edited(rng.choice([WHOLE, made_up[0]]), rng))
            case 1:  # a member of it, with a checksum that is right
                name = rng.choice(list(content))
                made_up.append(zipped(content | {name: edited(content[name], rng)}, method))
            case _:
                name = rng.choice(list(VALID))
                made_up.append(zipped(VALID | {name: edited(VALID[name], rng)}, method))
    return made_up


class Watch:
    """Notes what Python does that reading a file has no need of, while it is `on`."""

    def __init__(self) -> None:
        self.on, self.seen = False, set[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple) -> None:
        if self.on and (
            event.startswith(FORBIDDEN)
            or (event == "open" and args[2] & 3)  # to write
            or (event == "exec" and args[0].co_filename.startswith("<"))  # no module's
        ):
            self.seen.add(f"{event} {args}")


def check_file(path: Path, content: bytes, watch: Watch) -> bool:
    """Whether a file with this content is a case; fails if reading it does any harm."""
    path.write_bytes(content)
    start, watch.on = time.perf_counter(), True
    try:
        read_case(path)
        is_case = True
    except CaseError as error:
        assert path.name in str(error)
        is_case = False
    finally:
        watch.on = False
    assert not watch.seen, watch.seen
    assert time.perf_counter() - start < MAX_SECONDS
    return is_case
