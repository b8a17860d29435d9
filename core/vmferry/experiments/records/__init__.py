"""The database of runs: one SQLite file, to which rows are added and in which none is changed."""

from vmferry.experiments.records.database import Database, open_database
from vmferry.experiments.records.reading import RunRow, load_runs

__all__ = ["Database", "RunRow", "load_runs", "open_database"]
