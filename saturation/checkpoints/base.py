"""What every checkpoint looks like once it is open: named arrays of which any slice can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from saturation.checkpoints.disk_array import Box, DiskArray, SplitArray, as_box, box_shape
from saturation.errors import CheckpointFormatError, SaturationError


@dataclass(frozen=True)
class Parameter:
    """Shape and type of one parameter in its canonical orientation.

    `fan_in` is the size of the contracted dimension where the parameter is a kernel, else None.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fan_in: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes once read."""
        return self.size * self.dtype.itemsize


class LeftOut(NamedTuple):
    """An array that is no parameter, by its name on disk, and why it is none."""

    name: str
    reason: str


class Checkpoint:
    """The parameters of a model at one step, read from disk only when asked for.

    Attributes:
      step: the training step, or None where nothing says it.
      format: the name of the format, such as `"t5x"`.
      path: where it lies.
      settings: what its files say of the model's computation and no array tells: fields of
        `T5Config`, such as `scale_decoder_outputs`.
      left_out: (name, reason) of every array that is there and is no parameter.
      files: the names of the files that were read, where a folder can hold several versions.
      wrappers: the words before every name on disk that a training loop put there, taken off.
      untied: opens it again with arrays of the same bits counted each, where some are counted once.
    """

    def __init__(
        self,
        path: str,
        step: int | None,
        format: str,
        arrays: Mapping[str, DiskArray],
        sources: Mapping[str, ParameterLayout],
        settings: Mapping[str, Any] | None = None,
        *,
        left_out: Iterable[LeftOut] = (),
        files: Iterable[str] = (),
        wrappers: str = "",
        untied: Callable[[], Checkpoint] | None = None,
    ):
        self.path, self.step, self.format = path, step, format
        self.left_out, self.files = tuple(left_out), tuple(files)
        self.wrappers, self.untied = wrappers, untied
        self.settings: Mapping[str, Any] = MappingProxyType(dict(settings or {}))
        self._arrays, self._sources = arrays, sources

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path} step={self.step} format={self.format}>"

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Shape and dtype of every parameter under its canonical name, sorted by name."""
        return MappingProxyType(
            {
                name: self._sources[name].parameter(self._arrays[self._sources[name].array])
                for name in sorted(self._sources)
            }
        )

    def read(
        self, name: str, index: tuple[slice, ...] | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return a parameter, or the slice `index` of it, reading only what that needs.

        Args:
          name: a name of `parameters`.
          index: a slice of step 1 per axis (missing ones: all), or None for everything.
          out: a C-contiguous buffer of the slice's shape and dtype to read into.

        Returns:
          The slice in canonical orientation. With `out`, its memory is `out`'s, but an array that
          lies transposed on disk is returned as a transposed view of it: use the returned array.

        Raises:
          SaturationError: no such parameter, or an index or buffer that does not fit.
          CheckpointFormatError: the bytes are missing or damaged.
        """
        if name not in self._sources:
            raise SaturationError(f"{self.path}: there is no parameter {name!r}.")
        parameter = self.parameters[name]
        box = as_box(index, parameter.shape)
        if out is not None and (
            out.shape != box_shape(box)
            or out.dtype != parameter.dtype
            or not out.flags.c_contiguous
        ):
            raise SaturationError(
                f"{self.path}: to read {name!r} a C-contiguous buffer of shape {box_shape(box)} "
                f"and type {parameter.dtype} is needed, not {out.shape} and {out.dtype}."
            )
        return self.read_box(name, box, out)

    def read_box(self, name: str, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Do what `read` does, of a slice for each axis and a buffer that are known to fit."""
        source = self._sources[name]
        try:
            return source.read(self._arrays[source.array], box, out)
        except MemoryError as error:
            raise CheckpointFormatError(
                f"{self.path}: {name!r} of shape {self.parameters[name].shape} does not fit in "
                "memory."
            ) from error

    def verify(self) -> None:
        """Verify the checksums of all arrays, counted or not, that formats keep of whole files.

        Raises:
          CheckpointFormatError: some bytes are damaged.
        """
        for array in self._arrays.values():
            array.verify()

    @property
    def unsummed(self) -> tuple[str, ...]:
        """The files whose writer left out the checksums that their format has."""
        return tuple(sorted({array.unsummed for array in self._arrays.values()} - {""}))

    def block_axis(self, name: str) -> int:
        """Return the axis along which slices of a parameter are cheapest to read."""
        return self._block(name)[0]

    def block_multiple(self, name: str) -> int:
        """Return how many positions of that axis are read at once: blocks of multiples cost least.

        1 where any slice costs what it holds; more where the disk has chunks that are compressed.
        """
        return self._block(name)[1]

    def _block(self, name: str) -> tuple[int, int]:
        source = self._sources[name]
        return source.block(self._arrays[source.array])

    def load(self) -> dict[str, Any]:
        """Return all parameters as the nested dict that `T5.apply({"params": ...})` takes."""
        tree: dict[str, Any] = {}
        for name in self.parameters:
            *path, leaf = name.split("/")
            node = tree
            for key in path:
                node = node.setdefault(key, {})
            node[leaf] = np.ascontiguousarray(self.read(name))
        return tree


@dataclass(frozen=True)
class ParameterLayout:
    """How a canonical array lies on disk: positions taken on some axes, then two axes merged.

    Before that an axis can be parted; transposed is what comes of it all.

    Attributes:
      array: the name on disk.
      transposed: the disk holds the transpose of a matrix.
      take: (axis on disk, position) pairs; those axes are left out. Layers that were stacked and
        matrices that were fused are taken apart this way.
      merge: the axis that, after `take`, is merged with the one behind it: separate (heads,
        head_dim) axes become one, heads major.
      fan_in_axes: the contracted axes of a kernel, in canonical orientation.
      split: (axis on disk, sizes): that axis is seen as several, which `take` and `merge` count.
    """

    array: str
    transposed: bool = False
    take: tuple[tuple[int, int], ...] = ()
    merge: int | None = None
    fan_in_axes: tuple[int, ...] | None = None
    split: tuple[int, tuple[int, ...]] | None = None

    def parameter(self, array: DiskArray) -> Parameter:
        """Return the canonical shape and dtype of what `array` holds."""
        shape = self._shape(self._seen(array))
        axes = self.fan_in_axes
        fan_in = None if axes is None else math.prod(shape[axis] for axis in axes)
        return Parameter(shape, array.dtype, fan_in)

    def block(self, array: DiskArray) -> tuple[int, int]:
        """Return the canonical axis along which to cut, and the multiple to cut at.

        Of an array in chunks it is the axis that has the most of them, else the one whose slices
        are contiguous on disk.
        """
        array, taken = self._seen(array), dict(self.take)
        pieces = [piece for axis, piece in enumerate(array.chunk_shape) if axis not in taken]
        kept = self._kept(array)
        if self.merge is not None:
            pieces[self.merge : self.merge + 2] = [pieces[self.merge] * kept[self.merge + 1]]
        counts = [-(-n // piece) for n, piece in zip(self._merged(kept), pieces, strict=True)]
        axis = counts.index(max(counts)) if max(array.chunk_shape, default=1) > 1 else 0
        multiple = pieces[axis] if pieces else 1
        return (len(pieces) - 1 - axis if self.transposed else axis), multiple

    def read(self, array: DiskArray, box: Box, out: np.ndarray | None) -> np.ndarray:
        """Return the canonical slice `box`, reading from `array` only what that needs."""
        if self.transposed:
            buffer = None if out is None else out.reshape(box_shape(box)[::-1])
            return replace(self, transposed=False).read(array, box[::-1], buffer).T
        array = self._seen(array)
        if not self.take and self.merge is None:
            return array.read(box, out)
        kept = self._kept(array)
        inner, trim = self._split(kept, box)
        values = array.read(self._with_taken(inner, len(array.shape)))
        values = values.reshape(self._merged(box_shape(inner)))[trim]
        if out is None:
            return np.ascontiguousarray(values)
        np.copyto(out, values)
        return out

    def _seen(self, array: DiskArray) -> DiskArray:
        return array if self.split is None else SplitArray(array, *self.split)

    def _kept(self, array: DiskArray) -> tuple[int, ...]:
        taken = dict(self.take)
        return tuple(size for axis, size in enumerate(array.shape) if axis not in taken)

    def _merged(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.merge is None:
            return shape
        at = self.merge
        return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])

    def _shape(self, array: DiskArray) -> tuple[int, ...]:
        shape = self._merged(self._kept(array))
        return shape[::-1] if self.transposed else shape

    def _split(self, kept: tuple[int, ...], box: Box) -> tuple[Box, Box]:
        """Return the slice before merging that covers `box`, and what to cut from it after."""
        if self.merge is None:
            return box, tuple(slice(None) for _ in box)
        at, minor = self.merge, kept[self.merge + 1]
        wanted = box[at]
        first, last = wanted.start // max(minor, 1), -(-wanted.stop // max(minor, 1))
        inner = (*box[:at], slice(first, last), slice(0, minor), *box[at + 1 :])
        trim = [slice(None)] * len(box)
        trim[at] = slice(wanted.start - first * minor, wanted.stop - first * minor)
        return inner, tuple(trim)

    def _with_taken(self, inner: Box, rank: int) -> Box:
        taken, rest = dict(self.take), iter(inner)
        return tuple(
            slice(taken[axis], taken[axis] + 1) if axis in taken else next(rest)
            for axis in range(rank)
        )
