"""PyTorch's `.bin` archives, read without PyTorch and without running anything they contain.

The archive is a zip of uncompressed members: a pickle that describes the tensors, and the bytes of
each storage, which are read in place. Pickle is a language that can call any function; the few
instructions that a table of tensors needs are interpreted here, over an allow-list of names that
stand for data, and whatever else occurs is refused by name. `pickletools` takes the instructions
apart and runs none.
Sources: `torch/serialization.py`; `torch/_utils.py`.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays.archive import Archive, Refused
from saturation.checkpoints.arrays.flat_arrays import StridedArray
from saturation.checkpoints.disk_array import DTYPES, DiskArray, UnreadArray
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

# How files begin that torch.save wrote before it wrote zip archives (before 1.6, August 2020).
_OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_PICKLE = 64 * 1024 * 1024
# Each may make an object of 64 bytes.
_MAX_OPERATIONS = 1_500_000
# A tensor that repeats its elements may have so many bytes, or as many as the file, and all tensors
# together so many times that: of one storage there can be any number.
_LARGEST_REPEATED = 64 * 1024 * 1024
_MOST_TIMES = 16

_STORAGES = {
    f"torch {kind}Storage": DTYPES[dtype]
    for kind, dtype in (
        *(("Double", "float64"), ("Float", "float32"), ("Half", "float16")),
        *(("BFloat16", "bfloat16"), ("Long", "int64"), ("Int", "int32"), ("Short", "int16")),
        *(("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool")),
        *(("ComplexFloat", "complex64"), ("ComplexDouble", "complex128")),
    )
}
_UNTYPED = "torch.storage UntypedStorage"
_TYPES = {
    f"torch {name}": DTYPES[name]
    for name in (
        *("float16", "bfloat16", "float32", "float64", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_DICT = "collections OrderedDict"
# Tensors whose elements are not read, by the function that makes them.
_UNREAD = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor is not read here",
    "torch._utils _rebuild_sparse_csr_tensor": "a sparse tensor is not read here",
    "torch._utils _rebuild_qtensor": "a quantised tensor is not read here",
    "torch._utils _rebuild_meta_tensor_no_storage": "a tensor without storage has no elements",
    "torch._utils _rebuild_nested_tensor": "a nested tensor is not read here",
}
# What stands beside tensors and is none: types, shapes, devices, layouts.
_INERT = frozenset(
    f"torch {name}"
    for name in (
        *("Size", "device", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64"),
        *("complex128", "per_tensor_affine", "per_channel_affine", "contiguous_format"),
        *("preserve_format", "channels_last", "QInt8Storage", "QUInt8Storage", "QInt32Storage"),
    )
) | {"torch.serialization _get_layout"}
_ALLOWED = frozenset(
    {
        *(*_STORAGES, *_TYPES, *_UNREAD, *_INERT, _UNTYPED, _TENSOR, _DICT),
        *("torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"),
        *("torch._tensor _rebuild_from_type_v2", "torch Tensor"),
        *("torch.nn.parameter Parameter", "torch.nn.parameter Buffer"),
    }
)


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
        archive = Archive(folder, name)
        prefix = next((n for n in archive if n.endswith("/data.pkl")), None)
        if prefix is None or (archive.size(prefix) or 0) > _LARGEST_PICKLE:
            raise Refused("it holds no 'data.pkl' of a sensible size")
        root = prefix.removesuffix("data.pkl")
        byteorder = f"{root}byteorder"
        if archive.size(byteorder) is not None and archive.size(byteorder) != len(b"little"):
            raise Refused("its bytes are not little-endian")
        if archive.size(byteorder) and archive.member(byteorder).read() != b"little":
            raise Refused("its bytes are not little-endian")
        machine = _Machine(archive.member(prefix).read())
        storages = _Storages(archive, f"{root}data/", where, folder.size(name))
        return _named_tensors(machine.run(), storages)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointFormatError(f"{where} is truncated or no zip archive: {error}.") from error
    except (Refused, struct.error, ValueError, OSError) as error:
        raise CheckpointFormatError(f"{where} cannot be read: {error}.") from error


@dataclass(frozen=True)
class _Global:
    """A name of the allow-list; never the thing it names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _Unread:
    """A tensor whose elements are not read, and why; or what is no tensor at all."""

    reason: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where a list of arguments begins on the stack."""


class _Storages:
    """Finds the bytes of each storage inside the archive."""

    def __init__(self, archive: Archive, prefix: str, where: str, file_size: int):
        self._archive, self._prefix, self._where = archive, prefix, where
        self._most = max(file_size, _LARGEST_REPEATED)
        self._tensors: dict[_Tensor, DiskArray] = {}
        self._so_far = 0

    def tensor(self, tensor: _Tensor) -> DiskArray:
        if tensor not in self._tensors:
            array = self._tensors[tensor] = self._open(tensor)
            self._so_far += array.nbytes
            if self._so_far > _MOST_TIMES * self._most:
                raise Refused(f"its tensors together are more than {_MOST_TIMES} such files")
        return self._tensors[tensor]

    def unread(self, name: str, reason: str) -> DiskArray:
        return UnreadArray(f"{self._where}: {name!r}", (), reason)

    def _open(self, tensor: _Tensor) -> DiskArray:
        storage = tensor.storage
        shape = bounds.array_shape(self._where, tensor.shape, storage.dtype.itemsize)
        # Of one position, none follows: the stride of such an axis may be anything.
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, tensor.strides, strict=True))
        dtype, member = storage.dtype, f"{self._prefix}{storage.key}"
        size = storage.count * dtype.itemsize
        if (self._archive.size(member) or 0) < size or self._archive.size(member) is None:
            raise Refused(f"the storage {storage.key!r} of {size} bytes is missing or too short")
        reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        count = 0 if 0 in shape else reach
        if tensor.offset + count > storage.count:
            raise Refused(f"a tensor of shape {shape} reaches out of its storage")
        begin, place = tensor.offset * dtype.itemsize, self._archive.member(member)
        if count == math.prod(shape) and _in_c_order(shape, strides):
            return place.array(begin, shape, dtype)
        # `expand` keeps one copy of what it repeats.
        if count < math.prod(shape) and math.prod(shape) * dtype.itemsize > self._most:
            raise Refused(f"a tensor of shape {shape} repeats elements beyond the file's size")
        return StridedArray(place.array(begin, (count,), dtype), shape, strides)


class _Machine:
    """Interprets the instructions of a pickle that build dicts, tuples and tensors' records."""

    def __init__(self, program: bytes):
        self._program = program
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(self._program)):
            if instruction.name == "STOP":
                return self._pop()
            action = _ACTIONS.get(instruction.name)
            if action is None:
                raise Refused(f"its pickle has the instruction {instruction.name}")
            if number >= _MAX_OPERATIONS:
                break
            action(self, argument)
        raise Refused("its pickle does not end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise Refused("its pickle takes from an empty stack")
        return self._stack.pop()

    def named(self, name: str) -> None:
        if name not in _ALLOWED:
            shown = name.replace(" ", ".", 1)
            raise Refused(
                f"its pickle asks for {shown:.200}, which no table of tensors needs; nothing was "
                "executed"
            )
        self.push(_Global(name))

    def stack_named(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("its pickle asks for something by what is no name")
        self.named(f"{module} {name}")

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1] if self._stack else None

    def get(self, place: int) -> None:
        if place not in self._memo:
            raise Refused("its pickle refers to something it never made")
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
            raise Refused("its pickle sets items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise Refused("its pickle has a dict whose keys are no names")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, list):
            raise Refused("its pickle appends to what is no list")
        target.extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def persistent(self) -> None:
        match self._pop():
            case ("storage", _Global(name=kind), str(key), str(), int(count)) if count >= 0:
                # Storages without a type count bytes, until a tensor says what they are.
                dtype = np.dtype(np.uint8) if kind == _UNTYPED else _STORAGES.get(kind)
                if dtype is None and kind not in _INERT:
                    raise Refused("its pickle has a storage of an unknown kind")
                self.push(_Unread(kind) if dtype is None else _Storage(dtype, key, count))
            # Not shown, since a small pickle can describe what has no end when written out.
            case _:
                raise Refused("its pickle has a storage of an unknown kind")

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self.push(_made(function.name if isinstance(function, _Global) else None, arguments))

    def build(self) -> None:
        # Attributes of an OrderedDict (torch's own `_metadata`), of no interest.
        self._pop()
        if not self._stack or not isinstance(self._stack[-1], dict):
            raise Refused("its pickle sets attributes of what is no dict")


def _made(name: str | None, arguments: Any) -> Any:
    """Return what a function of the allow-list makes of its arguments, which is never called."""
    match name, arguments:
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_parameter", (_Tensor() | _Unread() as tensor, *_):
            return tensor
        case "torch._tensor _rebuild_from_type_v2", (_Global(name=inner), _, tuple(inside), *_) if (
            inner != name
        ):
            return _made(inner, inside)
        case "torch._utils _rebuild_tensor_v2", (
            _Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            *_,
        ):
            return _checked(_Tensor(storage, offset, shape, strides))
        case "torch._utils _rebuild_tensor_v3", (
            _Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            _,
            _,
            _Global(name=kind),
            *_,
        ) if kind in _TYPES:
            dtype = _TYPES[kind]
            typed = _Storage(dtype, storage.key, storage.count // dtype.itemsize)
            return _checked(_Tensor(typed, offset, shape, strides))
        case str(function), tuple() if function in _UNREAD:
            return _Unread(_UNREAD[function])
        case str(function), tuple() if function in _INERT:
            return _Global(function)
        case _:
            raise Refused(f"its pickle calls {name} in a way that makes no tensor")


def _checked(tensor: _Tensor) -> _Tensor:
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    fits = len(tensor.shape) == len(tensor.strides) <= bounds.MAX_RANK
    if not fits or any(type(n) is not int or not 0 <= n < bounds.TOO_LARGE for n in sizes):
        raise Refused("a tensor has a shape or strides that are no sizes")
    return tensor


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, version: None,
    "FRAME": lambda m, size: None,
    "MARK": lambda m, _: m.push(_Mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    **dict.fromkeys(
        ("BININT1", "BININT2", "BININT", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
        _Machine.push,
    ),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": lambda m, _: m.stack_named(),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda m, _: m.put(len(m._memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "SETITEM": lambda m, _: m.set_item(),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "APPEND": lambda m, _: m.extend([m._pop()]),
    "BINPERSID": lambda m, _: m.persistent(),
    "REDUCE": lambda m, _: m.reduce(),
    "BUILD": lambda m, _: m.build(),
}


def _named_tensors(tree: Any, storages: _Storages) -> dict[str, DiskArray]:
    """Return the tensors of a state dict, or of the one that a training loop put others beside."""
    for key in ("state_dict", "model_state_dict", "model_state", "model", "module"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict):
        raise Refused("it holds no dict of tensors")
    found: dict[str, DiskArray] = {}
    for key, value in tree.items():
        if isinstance(value, _Tensor):
            found[str(key)] = storages.tensor(value)
        elif isinstance(value, _Unread):
            found[str(key)] = storages.unread(str(key), value.reason)
    return found


def _in_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
