"""The published settings of `nsa`, one for each data set or object class."""

from caal_jax.synthesis.anomaly import check_choice

_FULL = (0.03, 0.4)


def _grey(*levels):
    return tuple(level / 255 for level in levels)


def _setting(height, width, logistic, *, background=None, min_object=0.7, **others):
    """One preset; logistic, background: as published, for grey levels of 0 to 255."""
    steepness, middle = logistic
    return {
        "half_width": (height, width),
        "logistic": (steepness * 255, middle / 255),
        "background": background and (_grey(*background),),
        "min_object": min_object,
        **others,
    }


def _object(*args, num_patches=3, **others):
    return _setting(
        *args,
        gamma=(2, 0.05, 0.03),
        num_patches=num_patches,
        resize=(0.7, 1.3),
        min_overlap=0.25,
        blend="normal",
        **others,
    )


def _texture(logistic):
    return _setting(
        _FULL,
        _FULL,
        logistic,
        gamma=(2, 0.05, 0.03),
        num_patches=4,
        resize=(0.5, 2.0),
        min_overlap=0.25,
        blend="mixed",
    )


_BRIGHT, _DARK = (200, 60), (20, 20)  # grey level of the background, and what differs from it

_PRESETS = {
    "chest_xray": _setting(
        _FULL,
        _FULL,
        (1 / 2, 4),
        background=(0, 20),
        gamma=(2, 0.03, 0.05),
        num_patches=3,
        resize=(0.7, 1.3),
        min_overlap=0.7,
        blend="mixed",
    ),
    "bottle": _object(_FULL, _FULL, (1 / 12, 24), background=_BRIGHT),
    "cable": _object((0.05, 0.4), (0.05, 0.4), (1 / 12, 24)),
    "capsule": _object((0.03, 0.15), _FULL, (1 / 2, 4), background=_BRIGHT),
    "hazelnut": _object((0.03, 0.35), (0.03, 0.35), (1 / 12, 24), background=_DARK),
    "metal_nut": _object(_FULL, _FULL, (1 / 3, 7), background=_DARK, min_object=0.5),
    "pill": _object((0.03, 0.2), _FULL, (1 / 3, 7), background=_DARK),
    "screw": _object(
        (0.03, 0.12), (0.03, 0.12), (1, 3), background=_BRIGHT, min_object=0.5, num_patches=4
    ),
    "toothbrush": _object(_FULL, (0.03, 0.2), (1 / 6, 15), background=_DARK, min_object=0.25),
    "transistor": _object(_FULL, _FULL, (1 / 6, 15)),
    "zipper": _object(_FULL, (0.03, 0.2), (1 / 6, 15), background=_BRIGHT, num_patches=4),
    "carpet": _texture((1 / 3, 7)),
    "grid": _texture((1 / 3, 7)),
    "leather": _texture((1 / 3, 7)),
    "tile": _texture((1 / 3, 7)),
    "wood": _texture((1 / 6, 15)),
}


def nsa_preset(name):
    """Options of `nsa` as published for "chest_xray" or a class of MVTec AD, as a new dict.

    Paper: Schlueter et al., Natural Synthetic Anomalies, 2022, arXiv:2109.15222; numbers from its
    training code, turned from grey levels of 0 to 255 into the unit range.
    """
    check_choice("preset", name, tuple(_PRESETS))
    return dict(_PRESETS[name])
