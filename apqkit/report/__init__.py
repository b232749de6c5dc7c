"""Figures, the HTML report, and tables checked against whole networks."""

from apqkit.report.lut_check import LutCheck, check_lut, draw_lut_check, write_lut_check

__all__ = ["LutCheck", "check_lut", "draw_lut_check", "write_lut_check"]
