#!/usr/bin/env python3
"""readme.py [--check]: writes each role's README.md from its argument specification, or says which is not up to date.

Needs PyYAML, which Ansible has.
"""

import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]


def markdown(text):
    """The markup of Ansible's documentation, as Markdown."""
    text = " ".join(str(text).split())
    text = re.sub(r"\b[CV]\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"`\1`", text)
    return re.sub(r"\b[IO]\(([^)]*)\)", r"`\1`", text)


def paragraphs(text):
    return [markdown(part) for part in ([text] if isinstance(text, str) else text)]


def cell(text):
    return text.replace("|", "\\|")


def default(option):
    value = option.get("default")
    if value is None:
        return "**required**" if option.get("required") else ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", [], {}):
        return {"str": "empty", "list": "`[]`", "dict": "`{}`"}.get(option["type"], "empty")
    return markdown(value) if " " in str(value) or "(" in str(value) else f"`{value}`"


def kind(option):
    if "choices" in option:
        return ", ".join(f"`{choice}`" for choice in option["choices"])
    names = {"str": "text", "int": "number", "bool": "`true` or `false`", "dict": "mapping", "raw": "as before"}
    if option["type"] == "list":
        return "list of " + names[option["elements"]]
    return names[option["type"]]


def readme(role):
    path = ROOT / "roles" / role
    spec = yaml.safe_load((path / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    lines = [f"# Role `backstay.backstay.{role}`", "", markdown(spec["short_description"]) + ".", ""]
    for text in paragraphs(spec["description"]):
        lines += [text, ""]
    lines += ["The [page on Ansible](../../docs/ansible.md) has examples.", ""]
    if spec.get("options"):
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in spec.get("options", {}).items():
        text = " ".join(paragraphs(option["description"]))
        if option.get("no_log"):
            text += " It is secret: no output shows it."
        lines.append(f"| `{name}` | {cell(kind(option))} | {cell(default(option))} | {cell(text)} |")
    lines += ["", "This page is made from `meta/argument_specs.yml`."]
    return "\n".join(lines) + "\n"


def main():
    check = sys.argv[1:] == ["--check"]
    old = []
    for path in sorted((ROOT / "roles").iterdir()):
        text, page = readme(path.name), path / "README.md"
        if not page.exists() or page.read_text() != text:
            old.append(f"roles/{path.name}/README.md")
            if not check:
                page.write_text(text)
    if check and old:
        sys.exit(f"{', '.join(old)}: not what the argument specification says; run tests/ansible/readme.py")


if __name__ == "__main__":
    main()
