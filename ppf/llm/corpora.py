"""Where documents come from; each function takes a split's name last and returns its documents."""

import bz2
import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import parquet

from ppf.artefacts import get_or_make
from ppf.errors import PPFError, reason
from ppf.llm.text_file import strings

_ARTICLES = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_END_MATTER = re.compile(
    r"\n==+ *(references|notes|footnotes|external links|further reading|see also|bibliography)"
    r" *==.*",
    re.IGNORECASE | re.DOTALL,
)
_MARKUP = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||</?ref|\|thumb")  # what the parser could not pair


def wikipedia_sample(split: str, *, cache: str, shortest_line: int) -> list[str]:
    """The English Wikipedia articles that gensim carries among its test data, as plain paragraphs.

    Args:
        cache: the cleaned articles are kept there.
        shortest_line: shorter lines (headings, captions, list crumbs) are left out.

    Raises:
        PPFError: gensim or mwparserfromhell is not installed.
    """

    def clean(draft: Path) -> None:
        articles = [_clean(a, shortest_line) for a in _articles(_dump())]
        parquet.write_table(pa.table({"text": articles}), draft)

    store = Path(cache) / f"wikipedia_sample-{shortest_line}.parquet"
    return get_or_make(store, read=_column, make=clean)


def hub(
    split: str, *, path: str, name: str | None, data_files: dict | None, column: str, limit: int
) -> list[str]:
    """A data set through `datasets`: a hub id, or a local folder of the same form.

    Args:
        limit: documents to read at most (streamed, so that large sets are not fetched whole).

    Raises:
        PPFError: it cannot be reached, is damaged, is a pickle, or has no such column of text.
    """
    if path == "pandas":  # of `datasets` 4; a pickle can run code
        raise PPFError("text.source.path=pandas reads pickles: give text.path=FILE.")
    try:
        stream = datasets.load_dataset(
            path, name, split=split, data_files=data_files, streaming=True
        )
        rows = [row[column] for row in stream.take(limit)]
    except Exception as error:  # `datasets` passes on whatever its readers raise
        raise PPFError(
            f"cannot read the data set '{path}' ({reason(error)}): give a local copy with"
            " text.source.path=FOLDER, or any file with text.path=FILE."
        ) from error
    return strings(rows, f"column '{column}' of '{path}'", "text.source.column")


def wikitext(split: str, **source: Any) -> list[str]:
    """A WikiText set, its lines joined to articles (an article starts at a ` = Title = ` line)."""
    articles: list[list[str]] = [[]]
    for line in hub(split, **source):
        if re.fullmatch(r" = [^=].* = \n?", line):
            articles.append([])
        articles[-1].append(line)
    return ["".join(lines) for lines in articles]


def one_stream(split: str, **source: Any) -> list[str]:
    """A whole split as one document: all rows in order, joined by one empty line.

    Empty rows stay. Wanda, FLAP and SliceGPT read the test split of WikiText-2 so.
    """
    return ["\n\n".join(hub(split, **source))]


def sentences(split: str, *, per_document: int, **source: Any) -> list[str]:
    """A set of single sentences, joined to documents of `per_document`."""
    rows = hub(split, **source)
    return [" ".join(rows[i : i + per_document]) for i in range(0, len(rows), per_document)]


def _column(file: Path) -> list[str]:
    return parquet.read_table(file)["text"].to_pylist()


def _dump() -> Path:
    """Where gensim keeps the articles."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None or importlib.util.find_spec("mwparserfromhell") is None:
        raise PPFError(
            "text=wikipedia_sample needs gensim and mwparserfromhell:"
            " run `pip install gensim mwparserfromhell` or give text.path=FILE."
        )
    return Path(spec.origin).parent / _ARTICLES


def _articles(dump: Path) -> Iterator[str]:
    with bz2.open(dump) as stream:
        for _, element in ElementTree.iterparse(stream):
            if not element.tag.endswith("}page"):
                continue
            prefix = element.tag.removesuffix("page")
            text = element.findtext(f"{prefix}revision/{prefix}text") or ""
            if element.findtext(f"{prefix}ns") == "0" and not text.lstrip().upper().startswith(
                "#REDIRECT"
            ):
                yield text
            element.clear()


def _clean(article: str, shortest_line: int) -> str:
    import mwparserfromhell

    code = mwparserfromhell.parse(_END_MATTER.sub("", article))
    for node in code.filter(matches=_is_clutter):
        try:
            code.remove(node)
        except ValueError:  # it went with a node around it
            continue
    lines = (line.strip() for line in code.strip_code(normalize=True, collapse=True).split("\n"))
    return "\n".join(x for x in lines if len(x) >= shortest_line and not _MARKUP.search(x))


def _is_clutter(node: object) -> bool:
    """Files, categories, references, tables and templates."""
    import mwparserfromhell.nodes as nodes

    if isinstance(node, nodes.Wikilink):
        return str(node.title).strip().lower().startswith(("file:", "image:", "category:"))
    if isinstance(node, nodes.Tag):
        return str(node.tag).lower() in ("ref", "table", "gallery", "math")
    return isinstance(node, nodes.Template)
