"""What people read of a run: `report.html`, `report.md`, the lines at the end of a run, and several runs side by side."""

from ioptim.report.comparison import Comparison, compare
from ioptim.report.comparison_page import comparison_page
from ioptim.report.text import summary_text
from ioptim.report.write import write_report

__all__ = ["Comparison", "compare", "comparison_page", "summary_text", "write_report"]
