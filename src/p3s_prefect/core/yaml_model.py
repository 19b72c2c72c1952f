"""A YAML document as a pydantic model, or all of its mistakes: place, what, and the fix from the model's docstrings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from p3s_prefect.core.addresses import without_password
from p3s_prefect.core.findings import did_you_mean
from p3s_prefect.core.yaml_document import Where, YamlDocument, dotted

_M = TypeVar("_M", bound=BaseModel)

_NO_EXAMPLES: Mapping[str, str] = MappingProxyType({})

_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
}
_HOW = {
    "a text": "Put it in quotes.",
    "a list": "Write [one, another], or lines that begin with `- `.",
    "a mapping of keys to values": "Write indented lines `key: value` below it.",
    "true or false": "Write true or false.",
}


def validated(document: YamlDocument, model: type[_M], *, examples: Mapping[str, str] = _NO_EXAMPLES) -> _M | None:
    """The model that the document's values describe; None if there are mistakes, which are then in the document.

    `examples` are fixes for texts that are not written as they must be, by the name of their key.
    """
    for where in _misplaced_truths(model, document.values):
        document.mistake(where, "true and false are not a value here", _meaning(model, where) or "Put it in quotes.")
    known = {mistake.key for mistake in document.mistakes}
    try:
        found = model.model_validate(document.values)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            where = _place(error["loc"], document, missing=error["type"] == "missing")
            if dotted(where) not in known:
                document.mistake(where, _what(error), _fix(model, error, where, examples))
                known.add(dotted(where))
        return None
    return None if document.mistakes else found


def _place(where: Where, document: YamlDocument, *, missing: bool) -> Where:
    """The place in the file: pydantic appends marks for keys and for the members of a union."""
    if missing:
        return where
    while where and where not in document.lines:
        where = where[:-1]
    return where


def _what(error: ErrorDetails) -> str:
    kind, value = error["type"], _shown(error["input"])
    context = error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not a key here"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {value}"
    if kind in ("literal_error", "enum"):
        return f"must be {context['expected']}, not {value}"
    if kind == "value_error":
        return str(context["error"]).partition(". ")[0]
    if kind == "string_pattern_mismatch":
        return f"{value} is not written as it must be"
    if kind == "too_short":
        return "must not be empty"
    return f"{error['msg'].replace('Input should', 'must')}, not {value}"


def _fix(model: type[BaseModel], error: ErrorDetails, where: Where, examples: Mapping[str, str]) -> str:
    kind, name = error["type"], str(where[-1]) if where else ""
    if kind == "extra_forbidden":
        return did_you_mean(name, _allowed(model, where[:-1]))
    if kind in ("literal_error", "enum"):
        options = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return did_you_mean(str(error["input"]), options)
    if kind == "value_error" and (fix := str(error["ctx"]["error"]).partition(". ")[2]):
        return fix
    how = examples.get(name, "") if kind == "string_pattern_mismatch" else _HOW.get(_EXPECTED.get(kind, ""), "")
    if error["input"] is None:
        how = "Give it a value, or remove the key."
    return " ".join(part for part in (how, _meaning(model, where)) if part) or "Correct it as said."


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    # A password is not shown, however wrong its place is.
    return repr(without_password(value) if isinstance(value, str) else value)[:80]


def _meaning(root: type[BaseModel], where: Where) -> str:
    """What the key at this place means, from the models' own docstrings."""
    found = ""
    for depth in range(len(where)):
        model = type_at(root, where[:depth])
        if isinstance(model, type) and issubclass(model, BaseModel):
            info: FieldInfo | None = model.model_fields.get(str(where[depth]))
            text = " ".join((info.description or "").split()) if info else ""
            found = f"`{where[depth]}`: {text}" if text else ""
    return found


def _allowed(root: type[BaseModel], where: Where) -> list[str]:
    model = type_at(root, where)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def type_at(root: type[BaseModel], where: Where) -> Any:
    """The type that a model declares at a place; None where it declares nothing."""
    declared: Any = root
    for part in where:
        if isinstance(declared, type) and issubclass(declared, BaseModel):
            info = declared.model_fields.get(str(part))
            declared = _plain(info.annotation) if info else None
        elif get_origin(declared) in (dict, list):
            declared = _plain(get_args(declared)[-1])
        else:
            return None if declared is not Any else Any
    return declared


def _plain(declared: Any) -> Any:
    """Without `Annotated` and without the None of an optional type."""
    while get_origin(declared) in (Annotated, Union, UnionType):
        members = [member for member in get_args(declared) if member is not type(None)]
        if get_origin(declared) is not Annotated and len(members) > 1:
            return declared
        declared = members[0]
    return declared


def _misplaced_truths(model: type[BaseModel], value: object, where: Where = ()) -> Iterator[Where]:
    """Places of true and false that are neither a truth value nor a free parameter; pydantic would read 1 and 0."""
    if isinstance(value, bool) and type_at(model, where) not in (bool, Any, None):
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from _misplaced_truths(model, child, (*where, key))
