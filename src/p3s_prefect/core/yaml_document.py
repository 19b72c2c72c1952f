"""YAML text as plain values, with the line of everything in it.

Only what an experiment file needs is read: one document of mappings, sequences and plain values of YAML 1.2. Anchors,
aliases and tags are refused: no tag can then make an object, and no alias can blow a small file up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from p3s_prefect.core.errors import ExperimentFileError, ExperimentFileErrors

Where = tuple[str | int, ...]

# A hundred times the largest experiment file that we wrote; the parser needs 8 s for a megabyte.
MAX_BYTES = 256 * 1024
_MAX_DEPTH = 40

_BEGIN = "Begin with `experiment: <name>`; `p3s init` writes a complete starter."
_PLAIN = "tag:yaml.org,2002:"
_SCALARS = {f"{_PLAIN}{kind}" for kind in ("str", "int", "float", "bool", "null")}
_TEXT = f"{_PLAIN}str"
# Resolved from the look of an unquoted value, but plain text to us.
_LOOKS = {f"{_PLAIN}timestamp", f"{_PLAIN}merge", f"{_PLAIN}value"}
_DIRECTIVE = re.compile("^\ufeff?%", re.MULTILINE)
_UNFIT = re.compile("[\x00\ud800-\udfff]")
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def dotted(where: Where) -> str:
    """A place as people write it: ``pipelines.dqm.stages.quick.steps[0].python``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


@dataclass(kw_only=True)
class YamlDocument:
    """The values of a document and the line of each, gathered while it is read, with the mistakes found so far."""

    file: str
    """Name of the file, for messages."""
    environment: Mapping[str, str]
    """What ``${NAME}`` is filled in from."""
    values: Any = None
    """Mappings, lists, texts, numbers, truth values and None."""
    lines: dict[Where, int] = field(default_factory=dict)
    """Line, from 1, of each key or list item."""
    mistakes: list[ExperimentFileError] = field(default_factory=list)

    def line(self, where: Where) -> int:
        """Line of the place, or of the nearest place around it that is in the file."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def mistake(self, where: Where, what: str, fix: str, *, line: int = 0) -> None:
        """Note a mistake at a place. What the file says is shown without its control characters."""
        what, key, fix = (_printable(text) for text in (what, dotted(where), fix))
        place = line or self.line(where)
        self.mistakes.append(ExperimentFileError(what, file=self.file, line=place, key=key, fix=fix))

    def read(self, node: Node, where: Where = ()) -> Any:
        """The plain value of a node. What is wrong in it is noted and left out."""
        self.lines.setdefault(where, node.start_mark.line + 1)
        if len(where) > _MAX_DEPTH:
            self.mistake(where, f"nested more than {_MAX_DEPTH} deep", "Use fewer levels.")
        elif node.anchor:
            self.mistake(where, "anchors (&) and aliases (*) are not allowed", "Write the value out in each place.")
        elif isinstance(node, MappingNode) and node.tag == f"{_PLAIN}map":
            return self._mapping(node, where)
        elif isinstance(node, SequenceNode) and node.tag == f"{_PLAIN}seq":
            return [self._item(child, (*where, index)) for index, child in enumerate(node.value)]
        elif isinstance(node, ScalarNode) and node.tag in _SCALARS | _LOOKS:
            return self._scalar(node, where)
        else:
            tag = str(node.tag).replace(_PLAIN, "!!")
            self.mistake(where, f"the tag {tag[:80]} is not allowed", "Remove it: only plain values are read.")
        return None

    def _item(self, node: Node, where: Where) -> Any:
        self.lines[where] = node.start_mark.line + 1
        return self.read(node, where)

    def _mapping(self, node: MappingNode, where: Where) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, ScalarNode) or key_node.anchor or key_node.tag not in {_TEXT, *_LOOKS}:
                shown = key if isinstance(key, str) else "of several values"
                self.mistake(where, f"the key {shown} is not a text", "Put it in quotes.", line=line)
            elif key in values:
                first = self.lines[(*where, key)]
                fix = f"Keep one of the two; the first is in line {first}."
                self.mistake((*where, key), "this key is given twice", fix, line=line)
            else:
                self.lines[(*where, key)] = line
                values[key] = self.read(value_node, (*where, key))
        return values

    def _scalar(self, node: ScalarNode, where: Where) -> Any:
        if node.tag in {_TEXT, *_LOOKS} and _UNFIT.search(node.value):
            self.mistake(where, "a text with a NUL or a broken character", "Write plain UTF-8 text.")
        elif node.tag == _TEXT:
            return _VARIABLE.sub(lambda found: self._fill_in(found, where), node.value)
        elif node.tag in _LOOKS:
            return node.value
        else:
            try:
                return SafeConstructor(loader=YAML(typ="safe", pure=True)).construct_object(node)
            except (ValueError, KeyError, OverflowError, YAMLError):
                self.mistake(where, f"{node.value[:80]!r} cannot be read", "Put it in quotes if it is a text.")
        return None

    def _fill_in(self, found: re.Match[str], where: Where) -> str:
        escaped, name, default = found.groups()
        if escaped:
            return found[0][1:]
        value = self.environment.get(name) or default
        if value is None:
            fix = f"Set it, write ${{{name}:-default}}, or $${{{name}}} where a payload's own shell shall read it."
            self.mistake(where, f"the environment variable {name} is not set or empty", fix)
            return ""
        return value


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def read_yaml(text: str, *, file: str, environment: Mapping[str, str], begin: str = _BEGIN) -> YamlDocument:
    """The document in `text`, with the mistakes that are already plain, such as a key given twice.

    ``${NAME}`` and ``${NAME:-default}`` inside a text value are filled in after parsing, so that what a variable holds
    is never read as YAML; ``$${NAME}`` stands for ``${NAME}`` itself. `begin` is for messages:
    how such a file begins.

    Raises:
        ExperimentFileErrors: there is nothing to read values from: too long, not YAML, empty, or not a mapping.
    """
    document = YamlDocument(file=file, environment=environment)
    if len(text) > MAX_BYTES:
        document.mistake((), f"longer than {MAX_BYTES // 1024} kB", "Is this the file that was meant?")
    elif directive := _DIRECTIVE.search(text):
        # A directive could switch to YAML 1.1, where 12:30 is 750 and no is false.
        line = text.count("\n", 0, directive.start()) + 1
        document.mistake((), "a YAML directive (%) is not allowed", "Remove the line: YAML 1.2 is read.", line=line)
    else:
        node = _compose(text, document)
        if isinstance(node, MappingNode):
            document.values = document.read(node)
            return document
        if not document.mistakes:
            what, line = (
                ("the file is not a mapping of keys", node.start_mark.line + 1) if node else ("the file is empty", 1)
            )
            document.mistake((), what, begin, line=line)
    raise ExperimentFileErrors(document.mistakes)


def _compose(text: str, document: YamlDocument) -> Node | None:
    line, what = 1, ""
    fix = "Look at this line and the one before: indentation (spaces only), a missing colon, quote or bracket."
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
        return node
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        if "found character '\\t'" in what:
            what, fix = "a tab is used for indentation", "Indent with spaces."
        elif "alias" in what:
            what, fix = "anchors (&) and aliases (*) are not allowed", "Write the value out, or quote a text with `*`."
        elif "got '{'" in what:
            fix = 'Inside [ ] and { }, put "${NAME}" and other texts with braces in quotes.'
        elif "another document" in what:
            what, fix = "a second document begins here", "Remove the line `---`: one file is one experiment."
    except RecursionError:
        what, fix = "nested too deep", f"Use at most {_MAX_DEPTH} levels."
    except (YAMLError, ValueError, AttributeError, NotImplementedError) as error:
        place = getattr(error, "position", 0)
        line = text.count("\n", 0, place if isinstance(place, int) else 0) + 1
        what, fix = str(error).splitlines()[0], "Write plain UTF-8 text without control characters."
    document.mistake((), f"not valid YAML: {what}", fix, line=line)
    return None
