"""Rows of a table of objects for Qt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt

from napari_apprentice import measure

__all__ = ["TableModel"]


class TableModel(QAbstractTableModel):
    """Rows of a table, all with the same columns, for Qt: in an order that the user chooses by a click on a column."""

    def __init__(self, rows: Sequence[measure.Row] = ()) -> None:
        super().__init__()
        self.rows = list(rows)
        self.columns = list(self.rows[0]) if self.rows else []

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of objects."""
        return len(self.rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of columns."""
        return len(self.columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The text of a cell: six digits of a number."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        value = self.rows[index.row()].get(self.columns[index.column()])
        return "" if value is None or value != value else f"{value:.6g}" if isinstance(value, float) else str(value)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        """The name of a column, without underscores; the number of a row."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        return self.columns[section].replace("_", " ") if orientation == Qt.Orientation.Horizontal else section + 1

    def is_empty(self, column: int) -> bool:
        """Whether nothing stands in a column."""
        return all(one.get(self.columns[column]) in (None, "") for one in self.rows)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """By the values of a column; empty cells stay last. A column that is not there changes nothing."""
        if not 0 <= column < len(self.columns):
            return
        name, descending = self.columns[column], order == Qt.SortOrder.DescendingOrder
        filled: list[measure.Row] = []
        empty: list[measure.Row] = []
        for one in self.rows:
            value = one[name]
            (empty if value is None or value != value else filled).append(one)

        def key(one: measure.Row) -> Any:
            return one[name]

        self.layoutAboutToBeChanged.emit()
        self.rows = [*sorted(filled, key=key, reverse=descending), *empty]
        self.layoutChanged.emit()
