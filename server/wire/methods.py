"""The three axes of a request: proto to library and back, field by field.

A method's message has the fields of its class under the same names, but for alternatives, which the proto has as a
oneof (``OneOf``). A method of another package has no message of its own: it travels by name, with its fields as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trimtab.decode.request.as_json import FormatError, fields_from_json, fields_to_json
from trimtab.decode.request.fields import Field, OneOf, Rated, described
from trimtab.decode.request.method import AXES, Method, default, methods
from trimtab.decode.request.objective import FUNCTION_ACCEPTED, Objective
from trimtab.server.wire.alike import members
from trimtab.server.wire.fields import COUNT, FLAG, NAME, NUMBER, TEXT, Faults, Writer, optional
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["EXTENSION", "read_method", "write_method"]

EXTENSION = "extension"  # the variant that stands for methods of other packages
_REQUIRED = {int: 0, float: 0.0, str: "", bool: False}


# ---------------------------------------------------------------------------------------------------- proto to library


def read_method(message: Any, axis: str, faults: Faults) -> Any:
    """The method of an axis's message; the default if its ``kind`` is not set.

    What cannot be read is refused, or has a value that is refused when it is checked.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        return default(axis)
    if kind == EXTENSION:
        return _read_extension(message.extension, axis, faults)
    return _read(methods(axis)[kind], getattr(message, kind), f"{axis}.{kind}", faults)


def _read(cls: type[Any], message: Any, path: str, faults: Faults) -> Any:
    """``cls`` from its message; what is unset takes its default, or is refused where there is none."""
    values: dict[str, Any] = {}
    for field in described(cls):
        where = f"{path}.{field.name}"
        oneof = field.mark(OneOf)
        if oneof is not None:
            value = _read_one_of(oneof, message, path, faults)
        elif field.repeated:
            items = enumerate(getattr(message, field.name))
            value = tuple(_read(field.kinds[0], item, f"{where}[{i}]", faults) for i, item in items)
        else:
            value = _read_field(field, message, where, faults)
        if value is not None:
            values[field.name] = value
        elif field.required and field.mark(Rated) is not None and field.kinds != (str,):
            values[field.name] = Objective(())  # refused, as one without terms
        elif field.required:
            if oneof is not None:
                faults.refuse(f"{path}.{oneof.name}", None, f"one of {', '.join(oneof.fields)}")
            elif field.kinds[0] in _REQUIRED:
                faults.refuse(where, None, "a value")
            values[field.name] = _REQUIRED.get(field.kinds[0])
    return cls(**values)


def _read_field(field: Field, message: Any, path: str, faults: Faults) -> Any:
    """The value of a field; None if it is unset."""
    descriptor = message.DESCRIPTOR.fields_by_name[field.name]
    if descriptor.enum_type is not None:
        return _read_enum(field.kinds[0], descriptor, getattr(message, field.name), path, faults)
    if descriptor.message_type is None:
        return optional(message, field.name) if descriptor.has_presence else getattr(message, field.name)
    if not message.HasField(field.name):
        return None
    kind = Objective if field.mark(Rated) else field.kinds[0]
    return _read(kind, getattr(message, field.name), path, faults)


def _read_one_of(oneof: OneOf, message: Any, path: str, faults: Faults) -> Any:
    name = message.WhichOneof(oneof.name)
    if name is None:
        return None
    kind = oneof.fields[name]
    if oneof.scalar:
        return kind(optional(message, name))
    return getattr(message, name) if kind is str else _read(kind, getattr(message, name), f"{path}.{name}", faults)


def _read_enum(kind: type[Enum], descriptor: FieldDescriptor, number: int, path: str, faults: Faults) -> Any:
    """The library's value; None if it is unspecified."""
    numbers, enum = members(kind, descriptor.enum_type), cast("Any", descriptor.enum_type)
    if number and number not in numbers.values():
        names = (enum.values_by_number[known].name for known in numbers.values())
        faults.refuse(path, number, f"one of {', '.join(names)}")
    return next((member for member in kind if numbers[member] == number), None)


def _read_extension(message: pb.Extension, axis: str, faults: Faults) -> Any:
    known = _extensions(axis)
    if message.name not in known:
        others = ", ".join(known) or "none is installed here"
        faults.refuse(f"{axis}.extension.name", message.name, f"a {axis} of another package: {others}")
        return default(axis)
    try:
        return fields_from_json(
            known[message.name], json_format.MessageToDict(message.fields), f"{axis}.{message.name}"
        )
    except FormatError as error:
        faults.violations += error.violations
        return default(axis)


# ---------------------------------------------------------------------------------------------------- library to proto


def write_method(message: Any, axis: str, method: object, writer: Writer) -> None:
    """Fill an axis's message; the default stays absent."""
    if not isinstance(method, AXES[axis]):
        writer.refuse(axis, method, f"one of {', '.join(cls.__name__ for cls in methods(axis).values())}")
    elif type(method) is type(default(axis)):
        return
    elif method.name in message.DESCRIPTOR.fields_by_name and method.name not in _extensions(axis):
        _write(getattr(message, method.name), method, method.path, writer)
    else:
        message.extension.name = method.name
        try:
            json_format.ParseDict(fields_to_json(method, method.path), message.extension.fields)
        except (FormatError, json_format.ParseError) as error:
            writer.refuse(method.path, method, f"values that JSON can carry ({error})")


def _write(message: Message, value: Any, path: str, writer: Writer) -> None:
    """Fill the fields of a message from those of a value."""
    message.SetInParent()
    for field in described(type(value)):
        inner, where = getattr(value, field.name), f"{path}.{field.name}"
        if inner is None:
            if not field.optional:
                writer.refuse(where, None, "a value")
        elif (oneof := field.mark(OneOf)) is not None:
            _write_one_of(message, oneof, field, inner, path, writer)
        elif field.repeated:
            _write_many(message, field, inner, where, writer)
        else:
            _write_field(message, field, inner, where, writer)


def _write_field(message: Any, field: Field, value: Any, path: str, writer: Writer) -> None:
    descriptor = message.DESCRIPTOR.fields_by_name[field.name]
    if descriptor.enum_type is not None:
        kind = cast("type[Enum]", field.kinds[0])
        if isinstance(value, kind):
            setattr(message, field.name, members(kind, descriptor.enum_type)[value])
        else:
            writer.refuse(path, value, f"one of {', '.join(str(member.value) for member in kind)}")
    elif field.mark(Rated) and descriptor.message_type is not None:
        if isinstance(value, str | Mapping | Objective):
            _write(getattr(message, field.name), Objective.of(value), path, writer)
        else:
            accepted = "the name of a reward, names and weights, or an Objective"
            writer.refuse(path, value, FUNCTION_ACCEPTED if callable(value) else accepted)
    elif descriptor.message_type is not None:
        if isinstance(value, field.kinds[0]):
            _write(getattr(message, field.name), value, path, writer)
        else:
            writer.refuse(path, value, f"a {field.kinds[0].__name__}" + (" or None" if field.optional else ""))
    else:
        writer.set(message, field.name, value, path, _accepted(descriptor))


def _write_one_of(message: Any, oneof: OneOf, field: Field, value: Any, path: str, writer: Writer) -> None:
    name = oneof.field_of(value)
    if name is None:
        kinds = ", ".join(NAME if kind is str else f"a {kind.__name__}" for kind in oneof.fields.values())
        writer.refuse(f"{path}.{oneof.named or field.name}", value, kinds)
    elif oneof.scalar:
        (only,) = described(type(value))
        writer.set(message, name, getattr(value, only.name), f"{path}.{name}", NUMBER)
    elif isinstance(value, str):
        writer.set(message, name, value, f"{path}.{name}", NAME)
    else:
        _write(getattr(message, name), value, f"{path}.{name}", writer)


def _write_many(message: Any, field: Field, values: object, path: str, writer: Writer) -> None:
    target, kind = getattr(message, field.name), field.kinds[0]

    def add(value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError
        _write(target.add(), value, f"{path}[{len(target) - 1}]", writer)

    writer.extend(values, add, path, f"a {kind.__name__}")


# ----------------------------------------------------------------------------------------------------------- the proto


def _extensions(axis: str) -> Mapping[str, type[Method]]:
    """Methods that the proto has no message for."""
    message: Any = {"policy": pb.Policy, "draw": pb.Draw, "search": pb.Search}[axis]
    known = message.DESCRIPTOR.fields_by_name
    return {name: cls for name, cls in methods(axis).items() if name not in known}


def _accepted(descriptor: FieldDescriptor) -> str:
    return {
        FieldDescriptor.CPPTYPE_UINT32: COUNT,
        FieldDescriptor.CPPTYPE_FLOAT: NUMBER,
        FieldDescriptor.CPPTYPE_BOOL: FLAG,
    }.get(descriptor.cpp_type, TEXT)
