"""Writers of checkpoints of every layout, in which any shape, count, name, size or link may be odd.

Each takes a `Site`, which it asks at every place in a file what stands there: `right` gives what
is right, and a test's own now and then one of the other things that it is told.
"""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import msgpack
import numpy as np
import tensorstore as ts
from test_checkpoints_bundle import field, masked, varint, write_table

VALUES = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.arange(4, dtype=np.float32),
    "c.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
}
SIZES = (0, 1, 2, 5, 65, 2**31 - 1, 2**31, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1)
NO_SIZES = (-1, 10**299, 1.5, "2", True, None, [2])
NAMES = ("", ".", "..", "../x", "/", "a\0b", "n" * 1001, "x" * 300, "a.weight", "é", "a//b", "\n")
TYPES = ("F32", "F64", "I4", "", 7, None, ["F32"], "float64", "int4", "<f8", ">f4", "|V2", "|O")

# What is right, and what it may be instead.
Site = Callable[..., Any]
Sizes = tuple[int, ...]


def right(value: Any, *instead: Any) -> Any:
    """The site at which nothing is broken."""
    return value


def shape_of(site: Site, shape: Sizes) -> Any:
    """A shape, of which a size, the rank or the whole may be another."""
    found = [site(size, *SIZES, *NO_SIZES) for size in shape]
    return site(found, [], found * 2, [0, *found], [*found, 1], [1] * 65, [2**40, 0], 3, None, "3")


# -- one file of arrays ---------------------------------------------------------------------------


def safetensors(site: Site, folder: Path, arrays: Mapping[str, np.ndarray], file: str) -> None:
    header, body = {}, b""
    for name, array in arrays.items():
        begin, end = len(body), len(body) + array.nbytes
        header[site(name, *NAMES)] = {
            "dtype": site({"f4": "F32", "f2": "F16"}[array.dtype.str[1:]], *TYPES),
            "shape": shape_of(site, array.shape),
            "data_offsets": site(
                [site(begin, *SIZES, *NO_SIZES), site(end, *SIZES, *NO_SIZES)], [], [0], 0, None
            ),
        }
        body += array.tobytes()
    text = json.dumps(site(header, [], {}, {"a": [header]})).encode()
    length = site(len(text), *SIZES) % 2**64
    (folder / file).write_bytes(struct.pack("<Q", length) + text + site(body, b"", body[:-1]))


def write_safetensors(site: Site, folder: Path) -> None:
    safetensors(site, folder, VALUES, "model.safetensors")


def write_shards(site: Site, folder: Path) -> None:
    files = ["model-1.safetensors", "model-2.safetensors"]
    odd = (*files, "model-3.safetensors", "./model-1.safetensors", "../x", "", "/etc/passwd", 3)
    placed = {}
    for number, (name, array) in enumerate(VALUES.items()):
        safetensors(site, folder, {name: array}, f"model-{number}.safetensors")
        placed[site(name, *NAMES)] = site(f"model-{number}.safetensors", *odd)
    index = {site("weight_map", "map"): site(placed, [], None, {"a.weight": placed})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(site(index, [], 3)))


# -- zarr -----------------------------------------------------------------------------------------


def chunk_files(array: np.ndarray, shape: Sizes) -> dict[Sizes, bytes]:
    """The bytes of each chunk of an array, those at the end filled up."""
    grid = tuple(-(-size // part) for size, part in zip(array.shape, shape, strict=True))
    whole = np.zeros([n * part for n, part in zip(grid, shape, strict=True)], array.dtype)
    whole[tuple(map(slice, array.shape))] = array
    return {
        place: whole[
            tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, shape, strict=True))
        ].tobytes()
        for place in np.ndindex(*grid)
    }


def zarr2(site: Site, array: np.ndarray) -> dict[str, bytes]:
    chunks = tuple(min(2, size) for size in array.shape)
    meta = {
        "zarr_format": site(2, 3, "2", None),
        "shape": shape_of(site, array.shape),
        "chunks": shape_of(site, chunks),
        "dtype": site(array.dtype.str, *TYPES),
        "order": site("C", "F", "K", None, ["C"]),
        "fill_value": site(None, 0.0, "NaN", 10**200, "x", -1, [0]),
        "filters": site(None, [], [{"id": "delta"}]),
        "compressor": site({"id": "zlib"}, None, {"id": "zstd"}, {"id": "blosc"}, {"id": 3}, "z"),
        "dimension_separator": site(".", "/", "", 7, ["."]),
    }
    packed = {k: zlib.compress(site(d, b"", d * 2)) for k, d in chunk_files(array, chunks).items()}
    files = {site(".".join(map(str, k)), "9.9", "0"): site(d, b"") for k, d in packed.items()}
    return {".zarray": json.dumps(site(meta, [], {})).encode(), **files}


def zarr3(site: Site, array: np.ndarray) -> dict[str, bytes]:
    inner = tuple(min(2, size) for size in array.shape)
    outer = tuple(2 * size for size in inner)
    bytes_codec = {"name": "bytes", "configuration": {"endian": site("little", "big", 3)}}
    settings = {
        "chunk_shape": shape_of(site, inner),
        "codecs": site([bytes_codec], [], ["bytes"], [bytes_codec, {"name": "crc32c"}]),
        "index_codecs": site([bytes_codec], [], [bytes_codec, {"name": "crc32c"}], 3),
        "index_location": site("end", "start", 3),
    }
    sharding = {"name": "sharding_indexed", "configuration": site(settings, [], None)}
    encoding = {"separator": site("/", ".", "", 7, [1])}
    meta = {
        "zarr_format": site(3, 2, "3"),
        "node_type": site("array", "group"),
        "shape": shape_of(site, array.shape),
        "data_type": site(str(array.dtype), *TYPES),
        "chunk_grid": {
            "name": site("regular", "rectilinear", 3),
            "configuration": site({"chunk_shape": shape_of(site, outer)}, {}, None),
        },
        "chunk_key_encoding": {"name": site("default", "v2", 3), "configuration": encoding},
        "fill_value": site(0.0, None, "NaN", 10**200, True, [0]),
        "codecs": site([sharding], [bytes_codec], [sharding, sharding], [], None),
    }
    files = {"zarr.json": json.dumps(meta).encode()}
    for place, data in chunk_files(array, outer).items():
        whole = np.frombuffer(data, array.dtype).reshape(outer)
        body, index = b"", b""
        for part in chunk_files(whole, inner).values():
            at, size = site(len(body), *SIZES) % 2**64, site(len(part), *SIZES) % 2**64
            index += struct.pack("<QQ", at, size)
            body += part
        files["/".join(("c", *map(str, place)))] = body + site(index, b"", index[:-16], index * 2)
    return files


def described(site: Site, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Orbax's `_METADATA` of a tree `params`."""
    leaves = {}
    for name, array in arrays.items():
        keys = [{"key": site("params", "", 3)}, {"key": site(name, *NAMES)}]
        shape = site(None, shape_of(site, array.shape))
        leaves[name] = {
            "key_metadata": site(keys, [], keys * 2, None, [{}]),
            "value_metadata": {
                "value_type": site("jax.Array", "np.ndarray", "scalar", 3),
                "write_shape": shape,
                "skip_deserialize": site(False, True),
            },
        }
    return json.dumps(site({"tree_metadata": site(leaves, [], {})}, [], {})).encode()


PLAIN = {name.replace(".", "_"): array for name, array in VALUES.items()}


def orbax(zarr: Callable[[Site, np.ndarray], dict[str, bytes]]) -> Callable[[Site, Path], None]:
    def write(site: Site, folder: Path) -> None:
        (folder / "_METADATA").write_bytes(described(site, PLAIN))
        for name, array in PLAIN.items():
            for key, data in zarr(site, array).items():
                path = folder / f"params.{name}" / key
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_dir():
                    path.write_bytes(data)

    return write


def write_ocdbt(site: Site, folder: Path) -> None:
    (folder / "_METADATA").write_bytes(described(site, PLAIN))
    context = ts.Context({"file_io_sync": False})
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    store = ts.KvStore.open(spec, context=context).result()
    with ts.Transaction(atomic=False) as transaction:
        inside = store.with_transaction(transaction)
        for name, array in PLAIN.items():
            files = site(zarr2, zarr3)(site, array)
            for key, data in files.items():
                inside.write(f"{site(f'params.{name}', *NAMES[:4])}/{key}".encode(), data).result()


# -- msgpack --------------------------------------------------------------------------------------


def packed(value: Any) -> bytes:
    """The value in msgpack, what it cannot hold left out."""
    try:
        return msgpack.packb(value, use_bin_type=True) or b""
    except (OverflowError, TypeError, ValueError):
        return b"\xc0"


def leaf(site: Site, array: np.ndarray) -> Any:
    data = site(array.tobytes(), b"", array.tobytes()[:-1], "text", None)
    parts = (shape_of(site, array.shape), site(str(array.dtype), *TYPES), data)
    one = msgpack.ExtType(site(1, 2, 3, 9), packed(site(parts, (), parts[:2], parts * 2)))
    cut = {str(axis): site(size, *SIZES) for axis, size in enumerate(array.shape)}
    pieces = {"0": one, "1": site(one, None, 3)}
    chunked = {"__msgpack_chunked_array__": True, "shape": cut, "chunks": pieces}
    return site(one, chunked, {"x": one}, [one], None)


def write_flax(site: Site, folder: Path) -> None:
    leaves = {site(name, *NAMES, 3): leaf(site, array) for name, array in PLAIN.items()}
    tree = {site("params", "opt_state", ""): site(leaves, [], {"params": leaves}, None)}
    (folder / "checkpoint_1").write_bytes(packed(tree) + site(b"", b"\0"))


def write_t5x(site: Site, folder: Path) -> None:
    target = {}
    for number, (name, array) in enumerate(PLAIN.items()):
        if number == 0:
            target[name] = leaf(site, array)
            continue
        path = site(f"target.{name}", "target.b_bias", "../x", "/etc", "", 3, "nowhere")
        spec: dict[str, Any] = {"driver": site("zarr", "n5", ""), "kvstore": {"path": path}}
        spec["metadata"] = site({"shape": shape_of(site, array.shape)}, None, {})
        target[site(name, *NAMES)] = site(spec, {}, {"driver": "zarr"})
        for key, data in zarr2(site, array).items():
            file = folder / f"target.{name}" / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    optimizer = {"target": site(target, [], None), "state": site({}, None, {"step": 1})}
    tree = {"version": site(3, 1, "3", None), "optimizer": site(optimizer, [], None)}
    (folder / "checkpoint").write_bytes(packed(tree))


# -- tables and archives --------------------------------------------------------------------------


def natural(value: Any) -> int:
    return value % 2**64 if type(value) is int else 0


def write_bundle(site: Site, folder: Path) -> None:
    entries, body = [(b"", field(1, site(1, *SIZES)) + field(3, field(1, 1)))], b""
    for name, array in VALUES.items():
        raw, shape = array.tobytes(), shape_of(site, array.shape)
        listed = shape if isinstance(shape, list) else []
        dimensions = b"".join(field(2, field(1, natural(size))) for size in listed)
        value = field(1, site({"f4": 1, "f2": 19}[array.dtype.str[1:]], 2, 7, 99))
        value += field(2, site(dimensions, b"\xff", 3)) + field(3, site(0, 1, 2**31))
        value += field(4, site(len(body), *SIZES)) + field(5, site(len(raw), *SIZES))
        value += varint(6 << 3 | 5) + struct.pack("<I", masked(google_crc32c.value(raw)))
        entries.append((site(name, *NAMES).encode(), value + site(b"", field(7, b""))))
        body += raw
    (folder / "model.ckpt-1.data-00000-of-00001").write_bytes(body)
    kept = site(entries, entries[:1], entries[1:], entries * 2, [])
    if kept:
        write_table(folder / "model.ckpt-1.index", kept, per_block=2)


def whole(value: Any) -> bytes:
    if type(value) is not int:
        return b"N"
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def pickled(site: Site, key: str, array: np.ndarray) -> bytes:
    """The instructions that make one tensor."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def tupled(value: Any) -> bytes:
        return b"(" + b"".join(map(whole, value if isinstance(value, list) else [])) + b"t"

    kind = site({"f4": b"Float", "f2": b"Half"}[array.dtype.str[1:]], b"Long", b"Odd")
    place = site(key, "0", "9", "../0", "")
    count = whole(site(array.size, *SIZES, -1))
    kept = b"(" + text("storage") + b"ctorch\n" + kind + b"Storage\n" + text(place) + text("cpu")
    kept += count + b"tQ"
    strides = [site(step // array.itemsize, *SIZES, -1) for step in array.strides]
    sizes = tupled(shape_of(site, array.shape)) + tupled(site(strides, [], strides * 2))
    view = kept + whole(site(0, *SIZES)) + sizes + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def write_torch(site: Site, folder: Path) -> None:
    program = b"\x80\x02}("
    for number, (name, array) in enumerate(VALUES.items()):
        key = site(name, *NAMES).encode()
        program += b"X" + struct.pack("<I", len(key)) + key + pickled(site, str(number), array)
    program += site(b"u.", b"u", b"s.", b"u0.", b"uh\x07.")
    with warnings.catch_warnings(), zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name
        archive.writestr(site("archive/data.pkl", "data.pkl", "x/data.pkl"), program)
        archive.writestr("archive/byteorder", site("little", "big", ""))
        for number, array in enumerate(VALUES.values()):
            data = site(array.tobytes(), b"", array.tobytes()[:-1])
            how = site(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            archive.writestr(f"archive/data/{site(number, 7)}", data, how)


LAYOUTS: dict[str, Callable[[Site, Path], None]] = {
    "safetensors": write_safetensors,
    "safetensors, shards": write_shards,
    "orbax, zarr 2": orbax(zarr2),
    "orbax, zarr 3": orbax(zarr3),
    "orbax, OCDBT": write_ocdbt,
    "flax": write_flax,
    "t5x": write_t5x,
    "bundle": write_bundle,
    "torch": write_torch,
}
