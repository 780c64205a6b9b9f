"""What `napari.yaml` points to: doors to the modules behind them.

napari imports this module in its main thread, and the window stands still meanwhile; so there is nothing in it. The modules behind the
doors are imported aside, when somebody wants to go through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QWidget

from napari_apprentice._napari.aside import aside

if TYPE_CHECKING:
    import napari
    from napari_apprentice._napari.contributions import LayerTuple
    from napari_apprentice._napari.measure_table import MeasureTable
    from napari_apprentice._napari.widget import ApprenticeWidget

__all__ = ["Apprentice", "Measure", "em_sample", "fundus_sample", "get_reader", "mri_sample", "write_labels"]


def _behind(module: str) -> Any:
    """A module of the window, which may not have been imported yet."""
    return aside(lambda: import_module(f"{__package__}.{module}"))


def _widget() -> Any:
    """The module of the widget, with the answer to what the widget asks napari for first: the first time that takes a tenth of a second."""
    keys, widget = (import_module(f"{__package__}.{module}") for module in ("keys", "widget"))
    keys.settings()
    return widget


class Apprentice(QWidget):
    """Calling this makes an `ApprenticeWidget`: napari passes the viewer to classes of widgets only, not to functions."""

    def __new__(cls, napari_viewer: napari.Viewer) -> ApprenticeWidget:
        """The widget, which is no instance of this class."""
        widget: ApprenticeWidget = aside(_widget).ApprenticeWidget(napari_viewer)
        return widget

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        """Never called; napari reads here what to pass."""


class Measure(QWidget):
    """Calling this makes a `MeasureTable`, as `Apprentice` does its widget."""

    def __new__(cls, napari_viewer: napari.Viewer) -> MeasureTable:
        """The widget, which is no instance of this class."""
        widget: MeasureTable = _behind("measure_table").MeasureTable(napari_viewer)
        return widget

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        """Never called; napari reads here what to pass."""


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerTuple]] | None:
    """See `contributions.get_reader`."""
    reader: Callable[[Any], list[LayerTuple]] | None = _behind("contributions").get_reader(path)
    return reader


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """See `contributions.write_labels`."""
    written: list[str] = _behind("contributions").write_labels(path, data, attributes)
    return written


def fundus_sample() -> list[LayerTuple]:
    """See `contributions.fundus_sample`."""
    return _sample("fundus_sample")


def mri_sample() -> list[LayerTuple]:
    """See `contributions.mri_sample`."""
    return _sample("mri_sample")


def em_sample() -> list[LayerTuple]:
    """See `contributions.em_sample`."""
    return _sample("em_sample")


def _sample(name: str) -> list[LayerTuple]:
    layers: list[LayerTuple] = getattr(_behind("contributions"), name)()
    return layers
