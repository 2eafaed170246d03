"""The description inside a file of torch.save, read as data: nothing in it is called.

A pickle is a program for a small machine. This one knows the dozen instructions that torch writes
for dictionaries, lists, plain values and tensors, and makes records of them; any other instruction
or name is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..untrusted import quoted
from .errors import FileError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MOST_SIDE = 1 << 40


class MoreThanWeights(FileError):
    """A pickle that would run something; the message names what."""


@dataclass(frozen=True)
class Storage:
    """The member `key` of the file, with `count` numbers of a type."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is described: part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class _Name:
    """A global name that a pickle may say."""

    text: str


def describe(data: bytes) -> Any:
    """The value of a pickle, with `StoredTensor` for every tensor.

    MoreThanWeights for what is no data; FileError for a damaged pickle.
    """
    try:
        return _Machine().run(data)
    except FileError:
        raise
    except Exception as error:  # damage can break any instruction, in any way
        raise FileError("its description of the weights is damaged") from error


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in PUSH:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in RULES:
                RULES[opcode.name](self, argument)
            else:
                raise MoreThanWeights(f"it has the instruction {opcode.name}")
        raise ValueError("it has no end")

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    # ------------------------------------------------------------ instructions
    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def put(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        if f"{module} {name}" not in CALLS and not (module == "torch" and name in STORAGES):
            raise MoreThanWeights(f"it asks for {quoted(text.replace(' ', '.'))}")
        self.stack.append(_Name(f"{module} {name}"))

    def stack_name(self, _: None) -> None:
        self.name(" ".join(self.pop_two()))

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise ValueError("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2]):
            if not isinstance(key, (str, int)) or key in target:
                raise ValueError("it has a key twice, or one that is neither text nor number")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("it extends what is no list")
        self.stack[-1].extend(values)

    def pop_two(self) -> list[Any]:
        values = self.stack[-2:]
        del self.stack[-2:]
        return values

    def storage(self, _: None) -> None:
        kind, name, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(key, str) or not isinstance(name, _Name):
            raise ValueError("it refers to what is no storage")
        dtype = STORAGES[name.text.removeprefix("torch ")]
        self.stack.append(Storage(key, dtype, _whole(count)))

    def reduce(self, _: None) -> None:
        function, arguments = self.pop_two()
        self.stack.append(CALLS[function.text](*arguments))

    def build(self, _: None) -> None:
        """An OrderedDict's own attributes (torch's `_metadata`) are of no use."""
        self.stack.pop()


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_SIDE:
        raise ValueError("it has a size that is no size")
    return value


def _tensor(storage: Storage, offset: int, shape: tuple, stride: tuple, *_: Any) -> StoredTensor:
    """The arguments of torch's `_rebuild_tensor_v2`. ValueError where they leave the storage."""
    shape, stride = tuple(map(_whole, shape)), tuple(map(_whole, stride))
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise ValueError("it has a tensor without a storage")
    count = math.prod(shape)
    last = _whole(offset) + sum((n - 1) * s for n, s in zip(shape, stride))
    if count and (last >= storage.count or count > storage.count):
        raise ValueError("it has a tensor that reaches out of its storage")
    return StoredTensor(storage, offset, shape, stride)


def _parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data


def _ordered(*pairs: Any) -> dict:
    if pairs:
        raise ValueError("it has an ordered dictionary of another form")
    return {}


PUSH = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2"),
    *("LONG1", "BINFLOAT"),
)
CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
RULES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
}
