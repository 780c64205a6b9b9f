"""Interactive segmentation that learns from every mask that its user accepts.

::

    from napari_apprentice import Click, open_session, read, write

    image = read("mri.nii.gz")
    session = open_session(image)
    session.add(Click((12, 80, 64), positive=True))
    session.accept()
    write("mri_labels.nii.gz", session.labels, like=image)

Every name is looked up when it is first asked for, so importing the package imports neither torch nor napari.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_apprentice.assembly import load_segmenter, make_policy, open_session, resume_session
    from napari_apprentice.files import read, read_labels, save_image, write
    from napari_apprentice.projects import create_project, open_project
    from napari_apprentice.session import Session
    from napari_apprentice.types import ApprenticeError, Box, Click, Image, Plane, Prediction
    from napari_apprentice.workbench import open_case, run_project

__version__ = "0.7.0"

__all__ = [
    "ApprenticeError",
    "Box",
    "Click",
    "Image",
    "Plane",
    "Prediction",
    "Session",
    "create_project",
    "load_segmenter",
    "make_policy",
    "open_case",
    "open_project",
    "open_session",
    "read",
    "read_labels",
    "resume_session",
    "run_project",
    "save_image",
    "write",
]

_HOMES = {
    "assembly": ("load_segmenter", "make_policy", "open_session", "resume_session"),
    "files": ("read", "read_labels", "save_image", "write"),
    "projects": ("create_project", "open_project"),
    "session": ("Session",),
    "types": ("ApprenticeError", "Box", "Click", "Image", "Plane", "Prediction"),
    "workbench": ("open_case", "run_project"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
