"""Makes the collection out of Python's manual: its FAQ's questions, whose answers are the relevant documents.

    apt-get download python3.11-doc && dpkg-deb -x python3.11-doc_*.deb manual
    python make.py manual/usr/share/doc/python3.11/html

The other documents are sections of the tutorial and the HOWTOs, and entries of the glossary.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

FAQ = ("general", "programming", "design", "library", "extending", "windows", "gui", "installed")
HOWTO = (
    "functional",
    "sorting",
    "regex",
    "unicode",
    "logging",
    "sockets",
    "urllib2",
    "argparse",
    "descriptor",
)
MOST_CHARACTERS = 700  # of a document: it ends at the last sentence or line before
LEAST_CHARACTERS = 80
HEADINGS = ("h1", "h2", "h3", "h4")
BLOCKS = (*HEADINGS, "p", "pre", "li", "dt", "dd", "div", "tr", "section")


class Sections(HTMLParser):
    """Collects (id, title, text) of each section and glossary entry, without the text of those below."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str], list[str]]] = []
        self._open: list[tuple[str, list[str], list[str]]] = []
        self._heading = self._anchor = False
        self._kinds: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag == "section" or (tag == "dt" and (named.get("id") or "").startswith("term-")):
            if tag == "dt" and self._kinds and self._kinds[-1] == "dt":
                self._close()
            self._open.append((named.get("id") or "", [], []))
            self._kinds.append(tag)
            self.found.append(self._open[-1])
            self._heading = tag == "dt"
        elif tag in HEADINGS:
            self._heading = True
        elif tag == "a" and named.get("class") == "headerlink":
            self._anchor = True
        if tag in BLOCKS:
            self._write("\n")

    def handle_endtag(self, tag):
        if tag == "a":
            self._anchor = False
        elif tag in (*HEADINGS, "dt"):
            self._heading = False
        elif tag == "section" or (tag == "dl" and self._kinds and self._kinds[-1] == "dt"):
            self._close()
        if tag in BLOCKS:
            self._write("\n")

    def handle_data(self, data):
        if not self._anchor:
            self._write(data)

    def _close(self):
        self._open.pop()
        self._kinds.pop()

    def _write(self, data):
        if self._open:
            _, title, text = self._open[-1]
            (title if self._heading else text).append(data)


def sections(path: Path) -> list[tuple[str, str, str]]:
    """Reads the sections of a page: id, title, text."""
    parser = Sections()
    parser.feed(path.read_text("utf-8"))
    folder = f"{path.parent.name}/" if path.parent.name != "html" else ""
    found = []
    for name, title, text in parser.found:
        heading = re.sub(r"^[\d.]+\s+", "", " ".join("".join(title).split()))
        found.append((f"{folder}{path.stem}#{name}", heading, shortened("".join(text))))
    return found


def shortened(text: str) -> str:
    """Puts a text on one line, and ends it where a sentence or a line ends; a project is told by its name."""
    text = re.sub(r"https://[^/\s]+/project/(\w+)/?", r"\1", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    whole = "\n".join(filter(None, lines))
    if len(whole) > MOST_CHARACTERS:
        head = whole[:MOST_CHARACTERS]
        ends = [match.end() for match in re.finditer(r"[.!?:](?=\s)|\n", head)]
        whole = head[: ends[-1] if ends else MOST_CHARACTERS]
    return " ".join(whole.split())


def main(manual: Path, folder: Path) -> None:
    queries: list[dict[str, str]] = []
    documents: dict[str, dict[str, str]] = {}
    judged: list[tuple[str, str]] = []
    for page in FAQ:
        for _, title, text in sections(manual / "faq" / f"{page}.html"):
            if title.endswith(("?", "…")) and len(text) >= LEAST_CHARACTERS:
                number = f"q{len(queries) + 1:03}"
                queries.append({"_id": number, "text": title})
                # The section's own name is the question, which is not to stand beside its answer.
                answer = f"faq/{page}-{len(queries):03}"
                documents[answer] = {"_id": answer, "title": "", "text": text}
                judged.append((number, answer))
    others = [
        *(manual / "howto" / f"{page}.html" for page in HOWTO),
        *sorted((manual / "tutorial").glob("*.html")),
    ]
    for path in [*others, manual / "glossary.html"]:
        for name, title, text in sections(path):
            if len(text) >= LEAST_CHARACTERS and ("#term-" in name or path.stem != "glossary"):
                documents[name] = {"_id": name, "title": title, "text": text}
    (folder / "qrels").mkdir(exist_ok=True)
    for file, rows in (("queries", queries), ("corpus", [documents[name] for name in sorted(documents)])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{file}.jsonl").write_text("".join(lines), "utf-8")
    lines = [f"{query}\t{document}\t1\n" for query, document in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).resolve().parent)
