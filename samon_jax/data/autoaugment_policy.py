"""What AutoAugment draws from on CIFAR: magnitudes of its operations, and pairs of them."""

import numpy as np

# Operation -> magnitude at the levels 0..9, in the units of `autoaugment`.
MAGNITUDES: dict[str, tuple[float, ...]] = {
    "ShearX": tuple(np.linspace(0, 0.3, 10)),
    "ShearY": tuple(np.linspace(0, 0.3, 10)),
    "TranslateX": tuple(np.linspace(0, 150 / 331, 10)),
    "TranslateY": tuple(np.linspace(0, 150 / 331, 10)),
    "Rotate": tuple(np.linspace(0, 30, 10)),
    "Color": tuple(np.linspace(0, 0.9, 10)),
    "Contrast": tuple(np.linspace(0, 0.9, 10)),
    "Brightness": tuple(np.linspace(0, 0.9, 10)),
    "Sharpness": tuple(np.linspace(0, 0.9, 10)),
    "Posterize": tuple(np.round(np.linspace(8, 4, 10))),
    "Solarize": tuple(np.linspace(256, 0, 10)),
    "AutoContrast": (0.0,) * 10,
    "Equalize": (0.0,) * 10,
    "Invert": (0.0,) * 10,
}
SIGNED = frozenset(MAGNITUDES) - {"Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"}

# Table 7 of the AutoAugment paper: twice (operation, probability, level).
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
