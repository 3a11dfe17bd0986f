"""A user's YAML as plain values, and back as they wrote it.

Owns keeping their keys, their order and the spelling of their scalars (`0600`, `1:30` and `5` stay
what Envoy makes of them). Anchors and merge keys are written out, comments are lost. Refuses to
know what a field means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from sidecar.envoylint.document import snake
from sidecar.envoyyaml import Dumper

Tree = dict[str, Any]

_TEXT: Final = "tag:yaml.org,2002:str"


class Plain(str):
    """A scalar without quotes: number, boolean or word, left for Envoy to read."""

    __slots__ = ()


class Block(str):
    """A text of several lines, such as Lua code."""

    __slots__ = ()


class WrongShape(ValueError):
    """A value is not of the form that Envoy's field has; the message names the field."""


def values_of(raw: yaml.Node) -> Any:
    """What a file holds: mappings, lists, `Plain`, `Block`, quoted strings, None.

    The node must have been measured (`envoylint.document.load`): anchors are written out.
    """
    if isinstance(raw, yaml.MappingNode):
        return _mapping(raw)
    if isinstance(raw, yaml.SequenceNode):
        return [values_of(item) for item in raw.value]
    assert isinstance(raw, yaml.ScalarNode)
    if raw.style == "|":
        return Block(raw.value)
    if raw.style:
        return str(raw.value)
    return Plain(raw.value) if raw.value else None


def _mapping(raw: yaml.MappingNode) -> Tree:
    own: Tree = {}
    merged: Tree = {}
    for key, value in raw.value:
        if not isinstance(key, yaml.ScalarNode):
            raise WrongShape(f"line {key.start_mark.line + 1}: a key that is no word")
        if key.value == "<<" and not key.style:
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(part, yaml.MappingNode):
                    raise WrongShape(f"line {part.start_mark.line + 1}: << merges no mapping")
                merged = {**_mapping(part), **merged}
        else:
            own[str(key.value) if key.style else Plain(key.value)] = values_of(value)
    return {**{name: value for name, value in merged.items() if name not in own}, **own}


class _Dumper(Dumper):
    """Writes plain scalars as they were, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(dumper: Dumper, text: Plain) -> yaml.ScalarNode:
    # The tag that its spelling has anyway: then the writer needs no quotes.
    tag = dumper.resolve(yaml.ScalarNode, str(text), (True, False))  # type: ignore[no-untyped-call]
    return dumper.represent_scalar(tag, str(text))


def _block(dumper: Dumper, text: Block) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TEXT, str(text), style="|")


_Dumper.add_representer(Plain, _plain)
_Dumper.add_representer(Block, _block)


def text_of(tree: Mapping[str, Any]) -> str:
    """One document, its keys in the order given."""
    text: str = yaml.dump(
        dict(tree), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
    )
    return text


# -- Fields, in either spelling of their names -----------------------------------------------------


def key(mapping: Mapping[str, Any], name: str) -> str:
    """How this mapping spells a field: snake_case or camelCase; snake_case when it has none.

    Raises:
        WrongShape: It is no mapping.
    """
    if not isinstance(mapping, dict):
        raise WrongShape(f"what has {name} is no mapping")
    return next((k for k in mapping if snake(k) == name), name)


def field(mapping: Any, *names: str) -> Any:
    """The value behind a path of fields; None where it ends."""
    for name in names:
        if not isinstance(mapping, dict):
            return None
        mapping = mapping.get(key(mapping, name))
    return mapping


def listed(mapping: Any, *names: str) -> list[Any]:
    """The list behind a path of fields; empty where there is none.

    Raises:
        WrongShape: There is something else.
    """
    found = field(mapping, *names)
    if found is None:
        return []
    if not isinstance(found, list):
        raise WrongShape(f"{'.'.join(names)} is no list")
    return found


def put(mapping: Tree, name: str, value: Any) -> None:
    """Set a field, at its place when it is there."""
    mapping[key(mapping, name)] = value


def drop(mapping: Tree, name: str) -> None:
    """Remove a field, if it is there."""
    spelled = key(mapping, name)
    mapping.pop(spelled, None)


def default(mapping: Tree, name: str, value: Any) -> Any:
    """The field's value, set to this one when it is absent or null."""
    spelled = key(mapping, name)
    if mapping.get(spelled) is None:
        mapping[spelled] = value
    return mapping[spelled]


def type_of(mapping: Any) -> str:
    """The last part of "@type"; "" when there is none."""
    return str(field(mapping, "@type") or "").rpartition(".")[2]
