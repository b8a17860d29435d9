"""A plugin's options: described for people, and validated from text, TOML or Python values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as shapes

from vmferry.api import Options
from vmferry.errors import InputError, OptionError
from vmferry.units import parse_duration, parse_rate, parse_size

__all__ = ["OptionInfo", "option_infos", "validate"]

_PARSERS: Mapping[str, Callable[[str], float]] = {
    "bytes": parse_size,
    "bytes/s": parse_rate,
    "seconds": parse_duration,
}
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
_NOTHING = {"", "none", "null"}
_ERROR_PATH = re.compile(r" - at `\$\.(\w+)")
_LIMITS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("multiple_of", "multiple of"))
_LIST_TYPES = (shapes.ListType, shapes.VarTupleType, shapes.SetType, shapes.FrozenSetType)


class OptionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a plugin, for people.

    Attributes:
        name: as users write it; a hyphen may stand for each underscore.
        type: e.g. ``int``, ``fast|small``, ``list of str``.
        default: what holds if it is not given, as plain data.
        unit: ``bytes``, ``bytes/s``, ``seconds`` or whatever the plugin says; ``""`` for none.
        description: what it does.
        limits: e.g. ``>= 1``.
        required: it has no default, which the contract does not allow.

    """

    name: str
    type: str
    default: Any
    unit: str = ""
    description: str = ""
    limits: str = ""
    required: bool = False


def option_infos(options_type: type[Options]) -> list[OptionInfo]:
    """Describe all options. Raises whatever a type that cannot be resolved makes msgspec raise."""
    return [_info(field) for field in _fields(options_type).values()]


def validate(plugin: str, options_type: type[Options], given: Mapping[str, Any]) -> Options:
    """Make the options struct from what a user wrote; ``plugin`` names the plugin in messages.

    Text is converted to the option's type: ``64KiB``, ``1Gbit/s`` and ``500ms`` where the option
    has such a unit, ``yes`` and ``off`` for a switch, ``none`` where nothing is allowed, and
    ``a,b`` for a list. Other values must fit as they are.

    Raises:
        OptionError: an option is unknown, has the wrong type or is out of range; names the plugin,
            the option, and those there are.

    """
    fields = _fields(options_type)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise OptionError(f"{plugin} has no option {key!r}; there are: {known}")
        values[name] = _prepare(plugin, fields[name], value)
    try:
        return msgspec.convert(values, options_type, strict=False, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise OptionError(_explain(plugin, given, str(error))) from None


def _explain(plugin: str, given: Mapping[str, Any], message: str) -> str:
    match = _ERROR_PATH.search(message)
    if match is None:
        return f"options of {plugin}: {message}"
    name = match[1]
    value = given.get(name, given.get(name.replace("_", "-")))
    return f"option {name!r} of {plugin}: {message[: match.start()]}, given {value!r}"


def _prepare(plugin: str, field: shapes.Field, value: Any) -> Any:
    """Turn text into what the option's unit or type asks for; other values are left alone."""
    if not isinstance(value, str):
        return value
    core, unit, optional = _core(field.type), _unit(field.type), _is_optional(field.type)
    if optional and value.strip().lower() in _NOTHING:
        return None
    if unit in _PARSERS:
        return _parse(plugin, field.encode_name, _PARSERS[unit], value)
    if isinstance(core, shapes.BoolType):
        return _SWITCHES.get(value.strip().lower(), value)
    if isinstance(core, _LIST_TYPES):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _parse(plugin: str, name: str, parser: Callable[[str], float], text: str) -> float:
    try:
        return parser(text)
    except InputError as error:
        raise OptionError(f"option {name!r} of {plugin}: {error}") from None


def _decode_path(wanted: type, value: Any) -> Any:
    if not isinstance(value, (str, Path)):
        raise TypeError(f"Expected a path, got `{type(value).__name__}`")
    return Path(value).expanduser()


@functools.lru_cache(maxsize=64)
def _fields(options_type: type[Options]) -> Mapping[str, shapes.Field]:
    shape = shapes.type_info(options_type)
    assert isinstance(shape, shapes.StructType)
    return {field.encode_name: field for field in shape.fields}


def _info(field: shapes.Field) -> OptionInfo:
    return OptionInfo(
        name=field.encode_name,
        type=_type_text(field.type),
        default=_default(field),
        unit=_unit(field.type),
        description=_description(field.type),
        limits=_limits(_core(field.type)),
        required=field.required,
    )


def _default(field: shapes.Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return _plain(field.default_factory())
    return None if field.default is msgspec.NODEFAULT else _plain(field.default)


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))


def _layers(shape: shapes.Type) -> list[shapes.Metadata]:
    """All metadata of a type, also that inside of ``Annotated[...] | None``."""
    if isinstance(shape, shapes.Metadata):
        return [shape, *_layers(shape.type)]
    if isinstance(shape, shapes.UnionType):
        return [layer for member in shape.types for layer in _layers(member)]
    return []


def _unit(shape: shapes.Type) -> str:
    units = ((layer.extra or {}).get("unit") for layer in _layers(shape))
    return next((str(unit) for unit in units if unit), "")


def _description(shape: shapes.Type) -> str:
    texts = ((layer.extra_json_schema or {}).get("description") for layer in _layers(shape))
    return next((str(text) for text in texts if text), "")


def _members(shape: shapes.Type) -> list[shapes.Type]:
    if isinstance(shape, shapes.Metadata):
        return _members(shape.type)
    if isinstance(shape, shapes.UnionType):
        return [inner for member in shape.types for inner in _members(member)]
    return [shape]


def _is_optional(shape: shapes.Type) -> bool:
    return any(isinstance(member, shapes.NoneType) for member in _members(shape))


def _core(shape: shapes.Type) -> shapes.Type:
    """The type itself: without metadata, and without ``None`` if it may be ``None``."""
    members = _members(shape)
    return next((one for one in members if not isinstance(one, shapes.NoneType)), members[0])


def _limits(shape: shapes.Type) -> str:
    found = [(sign, getattr(shape, name, None)) for name, sign in _LIMITS]
    return ", ".join(f"{sign} {bound}" for sign, bound in found if bound is not None)


def _type_text(shape: shapes.Type) -> str:
    return " or ".join(dict.fromkeys(_one_type_text(member) for member in _members(shape)))


def _one_type_text(shape: shapes.Type) -> str:
    if isinstance(shape, shapes.EnumType):
        return "|".join(str(member.value) for member in shape.cls)
    if isinstance(shape, shapes.LiteralType):
        return "|".join(str(value) for value in shape.values)
    if isinstance(shape, _LIST_TYPES):
        return f"list of {_type_text(shape.item_type)}"
    if isinstance(shape, shapes.CustomType):
        if shape.cls is Path:
            return "path"
        raise TypeError(f"type {shape.cls.__name__} is not supported")
    return type(shape).__name__.removesuffix("Type").lower()
