"""Units of length as files spell them."""

from __future__ import annotations

_SPELLINGS = {
    "pm": ("pm", "picometer", "picometre"),
    "Å": ("å", "angstrom", "ångström"),
    "nm": ("nm", "nanometer", "nanometre", "nanometers"),
    # Two code points look like a small mu, and ImageJ escapes one of them.
    "µm": ("µm", "μm", "\\u00b5m", "um", "micron", "microns", "micrometer", "micrometre", "micrometers"),
    "mm": ("mm", "millimeter", "millimetre", "millimeters"),
    "cm": ("cm", "centimeter", "centimetre", "centimeters"),
    "m": ("m", "meter", "metre", "meters"),
    "in": ("in", "inch", "inches", '"'),
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}

MM_PER = {"pm": 1e-9, "Å": 1e-7, "nm": 1e-6, "µm": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4}
"""Millimetres in every unit."""

_PRINT_DENSITIES = (72, 75, 90, 96, 100, 120, 144, 150, 180, 192, 200, 240, 300, 350, 360, 400, 600, 720, 1200)


def unit_named(spelling: object) -> str | None:
    """The key of `MM_PER` that a file means, or None for pixels and what is not a length.

    >>> unit_named("micron"), unit_named("Inch"), unit_named("pixel")
    ('µm', 'in', None)
    """
    return _NAMES.get(str(spelling).strip().lower())


def unit_for(length_mm: float) -> str:
    """The unit in which people state such a voxel spacing.

    >>> unit_for(8e-6), unit_for(0.00025), unit_for(0.7)
    ('nm', 'µm', 'mm')
    """
    return "nm" if length_mm < 1e-4 else "µm" if length_mm < 1e-2 else "mm"


def is_print_density(dots_per_inch: float) -> bool:
    """Whether this is a density that programs write when nobody measured anything.

    >>> is_print_density(2835 * 0.0254), is_print_density(254)
    (True, False)
    """
    return any(abs(dots_per_inch - usual) < 0.05 for usual in _PRINT_DENSITIES)
