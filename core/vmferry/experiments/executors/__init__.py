"""Where runs are done: here, one after the other, or by the workers of a Dask cluster."""

from vmferry.experiments.executors.base import Executor, perform
from vmferry.experiments.executors.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "perform"]
