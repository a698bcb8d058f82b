"""Templates fetch what they use, and name what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from datatask.adapters.execute.base.templates import Lazy, Template, TemplateError


async def test_templates_fetch_what_they_use_once() -> None:
    """A name that can be awaited is awaited where it is first used, in every kind of place."""
    asked: list[str] = []

    async def info() -> dict[str, Any]:
        asked.append("info")
        return {"items": [1, 2], "name": "n"}

    async def never() -> None:
        raise AssertionError("not used")

    text = "{% if doc.name == 'n' %}{% for item in doc['items'] %}{{ item }},{% endfor %}{% endif %}{{ doc.name | upper }}"
    rendered = await Template(text, where="t").render({"doc": Lazy(info), "other": Lazy(never)}, job="j")
    assert rendered == "1,2,N"
    assert asked == ["info"]


async def test_templates_name_task_job_and_mistake(tmp_path: Any) -> None:
    """Undefined names, syntax errors with their line, files that cannot be read."""
    with pytest.raises(TemplateError, match=r"t\[j\]: the template does not render: 'nothing' is undefined"):
        await Template("{{ nothing }}", where="t").render({}, job="j")
    with pytest.raises(TemplateError, match="line 2"):
        Template("fine\n{% if %}", where="t").compile()
    (tmp_path / "file").write_text("from a file: {{ job }}\n")
    assert (
        await Template(str(tmp_path / "file"), where="t").render({"job": "j"}, job="j") == "from a file: j\n"
    )
    with pytest.raises(TemplateError, match="cannot be read"):
        Template(tmp_path / "absent", where="t").compile()
