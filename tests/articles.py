"""A small text for tests; a command tokenises it in milliseconds, the default text in seconds."""

from pathlib import Path


def articles(count: int = 64) -> list[str]:
    """Short documents; 64 are enough for 31 windows of 64 bytes in the smallest part."""
    return [f"Article {i} tells of {i} things." * 4 for i in range(count)]


def write_articles(folder: Path, count: int = 64) -> Path:
    """Writes `articles` into a file."""
    file = folder / "text.txt"
    file.write_text("\n\n".join(articles(count)))
    return file
