"""Plots as SVG text, by matplotlib without a display."""

from vmferry.experiments.report.plots.axes import axis_plot
from vmferry.experiments.report.plots.downtime import downtime_plot
from vmferry.experiments.report.plots.phases import phases_plot
from vmferry.experiments.report.plots.series import series_plot

__all__ = ["axis_plot", "downtime_plot", "phases_plot", "series_plot"]
