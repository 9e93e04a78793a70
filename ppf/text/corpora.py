"""Sources of texts; each function returns the documents of one split."""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, TypedDict, Unpack
from unittest.mock import patch

import pyarrow as pa
from fsspec.registry import _registry, known_implementations
from pyarrow import parquet

from ppf.artefacts import get_or_make
from ppf.errors import PPFError, reason
from ppf.progress import track
from ppf.ranges import Count, Natural
from ppf.text.files import strings

_ARTICLES = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
_END_MATTER = re.compile(
    r"\n==+ *(references|notes|footnotes|external links|further reading|see also|bibliography)"
    r" *==.*",
    re.IGNORECASE | re.DOTALL,
)
_FILE_SYSTEMS = (  # of fsspec; none of these runs code of what it reads
    *("file", "local", "hf", "http", "https"),
    *("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd"),
)
_MARKUP = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||</?ref|\|thumb")  # that the parser left


def wikipedia_sample(split: str, *, cache: str, shortest_line: Natural) -> list[str]:
    """102 English Wikipedia articles from gensim's test data, as plain text.

    Args:
        split: not used; there is one split.
        cache: folder for the cleaned articles.
        shortest_line: fewest characters of a line that is kept. Shorter lines are mostly headings,
            captions and list items.

    Raises:
        ModuleNotFoundError: gensim or mwparserfromhell is not installed.
    """

    def clean(draft: Path) -> None:
        dump = Path(str(distribution("gensim").locate_file(_ARTICLES)))
        found = track(list(_articles(dump)), "Cleaning the articles")
        articles = [_clean(article, shortest_line) for article in found]
        parquet.write_table(pa.table({"text": articles}), draft)

    store = Path(cache) / f"wikipedia_sample-{shortest_line}.parquet"
    return get_or_make(
        store, read=lambda file: parquet.read_table(file)["text"].to_pylist(), make=clean
    )


class DataSet(TypedDict):
    """A data set that the library `datasets` reads.

    Args:
        path: hub id of the data set, or a local folder of the same layout.
        name: name of the data set's configuration; None: it has only one.
        data_files: files of each split; None: as the data set declares them.
        column: name of the column that holds the text.
        limit: largest number of rows to read. They are streamed, so the rest is not downloaded.
        revision: branch, tag or commit of the hub's repository; None: its main branch.
    """

    path: str
    name: str | None
    data_files: dict[str, Any] | None
    column: str
    limit: Count
    revision: str | None


def hub(split: str, **source: Unpack[DataSet]) -> list[str]:
    """The rows of a split of a data set.

    Raises:
        PPFError: the data set cannot be reached, is damaged, is a pickle, names files on a file
            system that can run code of what it reads, or has no such column of text.
    """
    import datasets  # takes as long as half of PyTorch

    given: dict[str, Any] = dict(source)
    path, column, limit = (given.pop(key) for key in ("path", "column", "limit"))
    try:
        if path == "pandas":  # a loader of `datasets`
            raise ValueError("it reads pickles, which can run code")
        with _file_systems():
            stream = datasets.load_dataset(path, split=split, streaming=True, **given)
            if stream.features:  # pictures and the like are decoded by other programs
                stream = stream.decode(False)
            return strings(
                (row[column] for row in stream.select_columns(column).take(limit)), column
            )
    except Exception as error:  # `datasets` passes on any error of its readers
        raise PPFError(
            f"cannot read the data set '{path}' ({reason(error)}): give a local copy with"
            " text.source.path=FOLDER, another text.source.column, or any file with text.path=FILE."
        ) from error


@contextmanager
def _file_systems() -> Iterator[None]:
    """A context in which fsspec knows only file systems that run no code of what they read.

    The README.md of a data set may name files on any file system. "reference://", for example,
    fills in templates of the files that it reads, which can read this process's secrets.
    """
    with ExitStack() as stack:
        for known in (known_implementations, _registry):
            allowed = {name: value for name, value in known.items() if name in _FILE_SYSTEMS}
            stack.enter_context(patch.dict(known, allowed, clear=True))
        yield


def wikitext(split: str, **source: Unpack[DataSet]) -> list[str]:
    """The articles of a WikiText data set, whose rows are lines; arguments as for `hub`."""
    articles: list[list[str]] = [[]]
    for line in hub(split, **source):
        if re.fullmatch(r" = [^=].* = \n?", line):  # the title of an article
            articles.append([])
        articles[-1].append(line)
    return ["".join(lines) for lines in articles]


def one_stream(split: str, **source: Unpack[DataSet]) -> list[str]:
    """A split as one document: all rows in order, also empty ones, joined by empty lines.

    Wanda, FLAP and SliceGPT read the test split of WikiText-2 in this way. Arguments as for `hub`.
    """
    return ["\n\n".join(hub(split, **source))]


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
    _remove_clutter(code)
    lines = (line.strip() for line in code.strip_code(normalize=True, collapse=True).split("\n"))
    return "\n".join(x for x in lines if len(x) >= shortest_line and not _MARKUP.search(x))


def _remove_clutter(code: Any) -> None:
    """Removes clutter at every depth in one pass; `code.remove` would walk `code` for each node."""
    code.nodes = [node for node in code.nodes if not _is_clutter(node)]
    for node in code.nodes:
        for inner in node.__children__():
            _remove_clutter(inner)


def _is_clutter(node: object) -> bool:
    """Whether a node is a file, category, reference, table or template."""
    import mwparserfromhell.nodes as nodes

    if isinstance(node, nodes.Wikilink):
        return str(node.title).strip().lower().startswith(("file:", "image:", "category:"))
    if isinstance(node, nodes.Tag):
        return str(node.tag).lower() in ("ref", "table", "gallery", "math")
    return isinstance(node, nodes.Template)
