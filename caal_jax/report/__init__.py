"""report: numbers and maps in, one offline HTML page, figures and case pictures out."""

from caal_jax.report.comparison import comparison_table, write_comparison
from caal_jax.report.gallery import Card, GalleryItem, case_picture, gallery_item
from caal_jax.report.page import write_report
from caal_jax.report.tables import results_table

__all__ = [
    "Card",
    "GalleryItem",
    "case_picture",
    "comparison_table",
    "gallery_item",
    "results_table",
    "write_comparison",
    "write_report",
]
