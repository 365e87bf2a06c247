"""PyTorch's `.bin` archives, read without PyTorch and without running anything they contain.

The archive is a zip of uncompressed members: a pickle that describes the tensors, and the bytes of
each storage, which are read in place. Pickle is a language that can call any function; the few
instructions that a table of tensors needs are interpreted here, over an allow-list of names that
stand for data, and whatever else occurs is refused by name.
Sources: CPython's `pickletools`; `torch/serialization.py`; `torch/_utils.py`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saturation.checkpoints.base import DTYPES, DiskArray, FileArray
from saturation.checkpoints.pieces import StridedArray
from saturation.checkpoints.storage import Folder
from saturation.errors import CheckpointFormatError

# How files begin that torch.save wrote before it wrote zip archives (before 1.6, August 2020).
_OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_PICKLE = 64 * 1024 * 1024
# Each may make an object of 64 bytes.
_MAX_OPERATIONS = 1_500_000
# What finding the members may take: their directory has about a hundred bytes for each.
_LARGEST_DIRECTORY = 8 * 1024 * 1024
_MAX_RANK = 32

_STORAGES = {
    f"torch {kind}Storage": DTYPES[dtype]
    for kind, dtype in (
        *(("Double", "float64"), ("Float", "float32"), ("Half", "float16")),
        *(("BFloat16", "bfloat16"), ("Long", "int64"), ("Int", "int32"), ("Short", "int16")),
        *(("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool")),
    )
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_ALLOWED = frozenset({*_STORAGES, _TENSOR, _PARAMETER, _DICT})


def is_archive(head: bytes) -> bool:
    """Say whether a file that begins with `head` (128 bytes) was written by torch.save."""
    return (head.startswith(b"PK\x03\x04") and b"data.pkl" in head) or head.startswith(_OLD)


def read_archive(folder: Folder, name: str) -> dict[str, DiskArray]:
    """Return the tensors of an archive by name; names of one tensor share one object.

    Raises:
      CheckpointFormatError: the file is damaged, of the old kind, or wants something executed.
    """
    where = folder.where(name)
    if folder.head(name, len(_OLD)) == _OLD:
        raise CheckpointFormatError(
            f"{where} is in PyTorch's format of before 2020, which is not read here: load it with "
            "torch and save it again."
        )
    try:
        file = _File(folder, name)
        with zipfile.ZipFile(io.BufferedReader(file)) as archive:
            file.allowed = file.size
            members = {member.filename: member for member in archive.infolist()}
            prefix = next((n for n in members if n.endswith("/data.pkl")), None)
            if prefix is None or members[prefix].file_size > _LARGEST_PICKLE:
                raise _Refused("it holds no 'data.pkl' of a sensible size")
            _stored(members[prefix])
            byteorder = members.get(prefix.removesuffix("data.pkl") + "byteorder")
            if byteorder:
                _stored(byteorder)
                if archive.read(byteorder) != b"little":
                    raise _Refused("its bytes are not little-endian")
            machine = _Machine(archive.read(members[prefix]))
            storages = _Storages(folder, name, members, prefix.removesuffix("data.pkl") + "data/")
            return _named_tensors(machine.run(), storages)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointFormatError(f"{where} is truncated or no zip archive: {error}.") from error
    except (_Refused, struct.error, ValueError, OSError) as error:
        raise CheckpointFormatError(f"{where} cannot be read: {error}.") from error


class _Refused(Exception):
    """Something in the archive is not what a table of tensors has."""


@dataclass(frozen=True)
class _Global:
    """A name of the allow-list; never the thing it names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a list of arguments begins on the stack."""


class _File(io.RawIOBase):
    """A file in a folder as zipfile wants one."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name, self._at = folder, name, 0
        self.size = folder.size(name)
        # How many bytes one read may still ask for.
        self.allowed = _LARGEST_DIRECTORY

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the file's beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        if count > self.allowed:
            raise _Refused(f"its table of members has {count} bytes")
        self._folder.read_into(self._name, self._at, view[:count])
        self._at += count
        return count


class _Storages:
    """Finds the bytes of each storage inside the archive."""

    def __init__(self, folder: Folder, name: str, members: dict[str, zipfile.ZipInfo], prefix: str):
        self._folder, self._name, self._members, self._prefix = folder, name, members, prefix
        self._flat: dict[_Storage, FileArray] = {}
        self._tensors: dict[_Tensor, DiskArray] = {}

    def tensor(self, tensor: _Tensor) -> DiskArray:
        if tensor not in self._tensors:
            self._tensors[tensor] = self._open(tensor)
        return self._tensors[tensor]

    def _open(self, tensor: _Tensor) -> DiskArray:
        start, dtype = self._place(tensor.storage), _STORAGES[tensor.storage.kind]
        shape, strides = tensor.shape, tensor.strides
        reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        count = 0 if 0 in shape else reach
        if tensor.offset + count > tensor.storage.count:
            raise _Refused(f"a tensor of shape {shape} reaches out of its storage")
        begin = start + tensor.offset * dtype.itemsize
        if count == math.prod(shape) and _in_c_order(shape, strides):
            return FileArray(self._folder, self._name, begin, shape, dtype)
        if count < math.prod(shape):
            raise _Refused(f"a tensor of shape {shape} repeats elements")
        flat = FileArray(self._folder, self._name, begin, (count,), dtype)
        return StridedArray(flat, shape, strides)

    def _place(self, storage: _Storage) -> int:
        """Return the byte at which a storage begins, having checked that it is all there."""
        member = self._members.get(self._prefix + storage.key)
        size = storage.count * _STORAGES[storage.kind].itemsize
        if member is None or member.file_size < size:
            raise _Refused(f"the storage {storage.key!r} of {size} bytes is missing or too short")
        _stored(member)
        # The local header repeats the name and has a padding of its own before the bytes.
        local = self._folder.read(self._name, member.header_offset, member.header_offset + 30)
        if local[:4] != b"PK\x03\x04":
            raise _Refused(f"the storage {storage.key!r} does not lie where the archive says")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        return member.header_offset + 30 + name_length + extra_length


class _Machine:
    """Interprets the instructions of a pickle that build dicts, tuples and tensors' records."""

    def __init__(self, program: bytes):
        self._program, self._at = program, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_OPERATIONS):
            code = self._take(1)[0]
            if code == ord("."):
                return self._pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise _Refused(f"its pickle has the instruction {bytes([code])!r}")
            action(self)
        raise _Refused("its pickle does not end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise _Refused("its pickle takes from an empty stack")
        return self._stack.pop()

    def _take(self, count: int) -> bytes:
        data = self._program[self._at : self._at + count]
        if len(data) < count:
            raise _Refused("its pickle ends too early")
        self._at += count
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def long(self) -> None:
        self.push(int.from_bytes(self._take(self.number("<B")), "little", signed=True))

    def text(self, layout: str) -> None:
        self.push(self._take(self.number(layout)).decode())

    def line(self) -> str:
        end = self._program.find(b"\n", self._at)
        if end < 0:
            raise _Refused("its pickle ends too early")
        text = self._program[self._at : end].decode()
        self._at = end + 1
        return text

    def named(self, module: str, name: str) -> None:
        if f"{module} {name}" not in _ALLOWED:
            raise _Refused(
                f"its pickle asks for {module:.100}.{name:.100}, which no table of tensors needs; "
                "nothing was executed"
            )
        self.push(_Global(f"{module} {name}"))

    def stack_named(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refused("its pickle asks for something by what is no name")
        self.named(module, name)

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1] if self._stack else None

    def get(self, place: int) -> None:
        if place not in self._memo:
            raise _Refused("its pickle refers to something it never made")
        self.push(self._memo[place])

    def since_mark(self) -> list[Any]:
        values = []
        while not isinstance(value := self._pop(), _Mark):
            values.append(value)
        return values[::-1]

    def tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self.push(tuple(values[::-1]))

    def set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, dict) or len(pairs) % 2:
            raise _Refused("its pickle sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise _Refused("its pickle has a dict whose keys are no names")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, list):
            raise _Refused("its pickle appends to what is no list")
        target.extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def persistent(self) -> None:
        match self._pop():
            case ("storage", _Global(name=kind), str(key), str(), int(count)) if (
                kind in _STORAGES and count >= 0
            ):
                self.push(_Storage(kind, key, count))
            # Not shown, since a small pickle can describe what has no end when written out.
            case _:
                raise _Refused("its pickle has a storage of an unknown kind")

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if isinstance(function, _Global) else None
        match name, arguments:
            case "collections OrderedDict", ():
                self.push({})
            case "torch._utils _rebuild_parameter", (_Tensor() as tensor, *_):
                self.push(tensor)
            case "torch._utils _rebuild_tensor_v2", (
                _Storage() as storage,
                int(offset),
                tuple(shape),
                tuple(strides),
                *_,
            ):
                self.push(_checked(_Tensor(storage, offset, shape, strides)))
            case _:
                raise _Refused(f"its pickle calls {name} in a way that makes no tensor")

    def build(self) -> None:
        # Attributes of an OrderedDict (torch's own `_metadata`), of no interest.
        self._pop()
        if not self._stack or not isinstance(self._stack[-1], dict):
            raise _Refused("its pickle sets attributes of what is no dict")


def _checked(tensor: _Tensor) -> _Tensor:
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    fits = len(tensor.shape) == len(tensor.strides) <= _MAX_RANK
    if not fits or any(type(size) is not int or not 0 <= size < 2**62 for size in sizes):
        raise _Refused("a tensor has a shape or strides that are no sizes")
    return tensor


_ACTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.number("<B"),  # PROTO
    0x95: lambda m: m.number("<Q"),  # FRAME
    ord("("): lambda m: m.push(_Mark()),
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("G"): lambda m: m.push(m.number(">d")),
    0x8A: lambda m: m.long(),
    ord("X"): lambda m: m.text("<I"),
    0x8C: lambda m: m.text("<B"),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: lambda m: m.stack_named(),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m._memo)),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("s"): lambda m: m.set_item(),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("a"): lambda m: m.extend([m._pop()]),
    ord("Q"): lambda m: m.persistent(),
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
}


def _named_tensors(tree: Any, storages: _Storages) -> dict[str, DiskArray]:
    """Return the tensors of a state dict, or of the one that a training loop put others beside."""
    for key in ("state_dict", "model_state_dict", "model_state", "model", "module"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict):
        raise _Refused("it holds no dict of tensors")
    return {
        str(key): storages.tensor(value)
        for key, value in tree.items()
        if isinstance(value, _Tensor)
    }


def _in_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _stored(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise _Refused(f"its member {member.filename!r} is compressed or encrypted")
