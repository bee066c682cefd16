"""Reader of tab-separated text with a header line, whose errors name file and line. Used by `data` only."""

from collections.abc import Iterator
from pathlib import Path

from fewshard_models.errors import DataError


def read_rows(file: Path, layout: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (counting from 1, the header) and columns of each line below the header.

    Nothing is quoted, because sentences contain bare quotes. `layout` describes a line in error messages.
    Raises DataError if the file is missing, or a line has the wrong number of columns or is not UTF-8.
    """
    if not file.is_file():
        raise DataError(f"no file {file}; it holds lines of `{layout}` under a header")
    num_columns = layout.count("<TAB>") + 1
    number = 1
    for number, line in enumerate(file.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            row = line.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, line {number}: not UTF-8 ({error.reason})") from error
        if number == 1:
            continue
        if len(row) != num_columns:
            raise bad_row(file, number, layout, row)
        yield number, row
    if number == 1:
        raise DataError(f"{file} has no rows under its header; it holds lines of `{layout}`")


def bad_row(file: Path, number: int, layout: str, row: list[str]) -> DataError:
    return DataError(f"{file}, line {number}: expected `{layout}`, got {row!r}")
