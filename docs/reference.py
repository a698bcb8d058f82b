"""What the site draws from the code: public names, commands, events.

In: `datatask._HOME`, the click commands, `schema/events.py`. Out: the directives `public` and `events`, the group `commands` for
sphinx-click, and an error for a public name that no page has. A page asks for names by the modules that define them, so that a new
name needs no line here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import datatask
from datatask import simulation, testing
from datatask.adapters.cli.main import make_group
from datatask.adapters.cli.settings import Settings
from datatask.schema.codec import UPCASTERS
from datatask.schema.events import ENVELOPE, KINDS

commands = make_group(Settings(), None)
CODE = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
MARKS = re.compile(r"([*_|\\])")
FOREIGN = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)")
say = logging.getLogger(__name__)


def public() -> dict[str, str]:
    """Return each public name, with its module before it, and the module that defines it."""
    names = {f"datatask.{name}": home for name, home in datatask._HOME.items()}
    for module in (simulation, testing):
        for name in module.__all__:
            home = names.get(f"datatask.{name}")  # the same thing stands at one place only
            if home is None:
                names[f"{module.__name__}.{name}"] = module.__name__
    return names


def within(homes: Iterable[str], but: Iterable[str] = ()) -> list[str]:
    """Return the public names whose modules are below one of `homes`, and below none of `but`."""

    def below(home: str, places: Iterable[str]) -> bool:
        return any(home == place or home.startswith(f"{place}.") for place in places)

    return sorted(name for name, home in public().items() if below(home, homes) and not below(home, but))


def found(name: str) -> Any:
    """Return what a public name stands for."""
    module, _, last = name.rpartition(".")
    return getattr({"datatask": datatask}.get(module) or getattr(datatask, module.partition(".")[2]), last)


class Public(SphinxDirective):
    """The names that the modules in the argument define; `but` leaves out those of some of them."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"but": str.split}

    def run(self) -> list[nodes.Node]:
        """Have autodoc tell each of them."""
        lines: list[str] = []
        for name in within(self.arguments[0].split(), self.options.get("but", ())):
            thing = found(name)
            kind = "class" if isinstance(thing, type) else "function" if callable(thing) else "data"
            lines += [f".. auto{kind}:: {name}", ""]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


class Events(SphinxDirective):
    """All kinds of events: version, what older versions are read, fields, meaning."""

    def run(self) -> list[nodes.Node]:
        """Write them as a table."""
        rows = [
            "| kind | version | reads | must be known | fields | what it says |",
            "|---|---|---|---|---|---|",
        ]
        older = Counter(kind for kind, _ in UPCASTERS)
        for name, kind in KINDS.items():
            own = [field for field in msgspec.structs.fields(kind) if field.name not in ENVELOPE]
            fields = ", ".join(f"`{field.name}`" for field in own)
            first = kind.VERSION - older[name]
            reads = f"{first} to {kind.VERSION}" if first < kind.VERSION else str(first)
            says = " ".join((kind.__doc__ or "").split()).replace("|", "\\|")
            rows.append(
                f"| `{name}` | {kind.VERSION} | {reads} | {'yes' if kind.ESSENTIAL else 'no'} | {fields} | {says} |"
            )
        return self.parse_text_to_nodes("\n".join(rows))


def plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Hand a docstring's text over as text: only its code is marked, whatever else it holds."""
    text, at, parts = "\n".join(lines), 0, []
    for code in CODE.finditer(text):
        parts += [MARKS.sub(r"\\\1", text[at : code.start()]), f"``{code[0].strip('`').strip()}``\\ "]
        at = code.end()
    parts.append(MARKS.sub(r"\\\1", text[at:]))
    lines[:] = "".join(parts).splitlines()


def bases(app: Sphinx, name: str, thing: Any, options: Any, found_bases: list[Any]) -> None:
    """Name bases as users import them."""
    for index, base in enumerate(found_bases):
        if getattr(base, "__name__", "") in datatask._HOME:
            found_bases[index] = f":py:class:`datatask.{base.__name__}`"


def resolve(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Lead a reference to a name's module to the name as users import it."""
    last = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or last not in datatask._HOME:
        return None
    domain = env.domains["py"]
    target = f"datatask.{last}"
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def complete(app: Sphinx, env: Any) -> None:
    """Warn of each public name that no page has."""
    for name in sorted(set(public()) - set(env.domains["py"].objects)):
        say.warning("%s is on no page: name its module in docs/api.md", name)


def at_home(app: Sphinx, error: Exception | None) -> None:
    """Refuse a page that loads something from another host."""
    if error is None and app.builder.format == "html":
        for page in app.outdir.rglob("*.html"):
            for address in FOREIGN.findall(page.read_text()):
                raise ExtensionError(f"{page.name} loads from {urlsplit(address).netloc}: {address}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_directive("public", Public)
    app.add_directive("events", Events)
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-bases", bases)
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", complete)
    app.connect("build-finished", at_home)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
