"""report: numbers and maps in, one offline HTML page, figures and case pictures out."""

from caal_jax.report.gallery import GalleryItem, case_picture
from caal_jax.report.page import write_report
from caal_jax.report.tables import results_table

__all__ = ["GalleryItem", "case_picture", "results_table", "write_report"]
