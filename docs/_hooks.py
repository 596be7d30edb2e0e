"""A mkdocs hook: what GitHub shows and mkdocs does not, links that lead out of docs/ and formulas, works on the site too.

A page links to `../configs/demo.yaml` or `../bench/step.yaml`, as a viewer of the repository wants it. On the site such a file lies
at the same path below the site's root, and only files that some page links to are copied. README.md is the home page there,
CONTRIBUTING.md and CHANGELOG.md are pages, and a link to a folder becomes one to its README.md, or plain text. Formulas
(`$...$`, `$$...$$`) become MathML while the site is built, so no script is needed.
"""

import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\((?![\w+.-]+:)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    folder = ROOT if page.file.src_uri in ROOT_PAGES else Path(config.docs_dir) / os.path.dirname(page.file.src_uri)

    def on_the_site(link):
        text, target, anchor = link[1], link[2], link[3] or ""
        path = Path(os.path.normpath(folder / target))
        if path.is_dir():
            if not (path / "README.md").exists():
                return text
            path /= "README.md"
        if path == ROOT / "README.md":
            return f"[{text}](index.md)"
        if not path.is_file():
            return link[0]  # mkdocs says that it leads nowhere
        inside = path.is_relative_to(config.docs_dir)
        uri = path.relative_to(config.docs_dir if inside else ROOT).as_posix()
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
        return f"[{text}]({os.path.relpath(uri, os.path.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(on_the_site, markdown)


def on_page_content(content, page, config, files):
    def mathml(formula):
        kind = "block" if formula[1] == "div" else "inline"
        return f"<{formula[1]}>{convert(html.unescape(formula[2]), display=kind)}</{formula[1]}>"

    return FORMULA.sub(mathml, content)
