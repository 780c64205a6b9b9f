"""A window with an image and the widget in it, for `apprentice demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_apprentice import files
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Engine
from napari_apprentice._napari.placement import look_upright
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice.types import Image

if TYPE_CHECKING:
    import napari

__all__ = ["launch", "open_window"]


def open_window(
    image: Image | Path | str, *, upright: bool = False, engine: Engine | None = None
) -> tuple[napari.Viewer, ApprenticeWidget]:
    """Show ``image`` in a new napari window with the widget docked, ready to press *Start*.

    Parameters
    ----------
    image : what to show, or the path of it
    upright : draw the anterior or superior side at the top, for volumes of patients
    engine : opens sessions; by default with the shipped weights

    Raises
    ------
    ReadError : as `files.read`
    """
    import napari

    shown = image if isinstance(image, Image) else files.read(image)
    viewer = napari.Viewer(title="napari-apprentice")
    data, arguments, _ = image_layer(shown)
    viewer.add_image(data, **arguments)
    widget = ApprenticeWidget(viewer, engine)
    viewer.window.add_dock_widget(widget, name="Apprentice", area="right")
    look_upright(viewer, upright)
    return viewer, widget


def launch(image: Image | Path | str, *, upright: bool = False) -> None:
    """Open the window, begin a session, and return when the user closes it."""
    import napari

    _, widget = open_window(image, upright=upright)
    widget.start.click()
    napari.run()
