"""Names of the published network's parameters and buffers."""

import re

FIRST_BLOCK = {"bn1": "pre_act.0", "conv1": "layer.0", "bn2": "layer.1", "conv2": "layer.3", "shortcut": "identity"}
OTHER_BLOCKS = {"bn1": "layer.0", "conv1": "layer.2", "bn2": "layer.3", "conv2": "layer.5", "shortcut": "identity"}
OUTSIDE = {
    "stem": "encoder.init_conv", "bn": "encoder.unit4.0", "head": "classifier.classifier",
    "heads.rotation": "projection.projections", "heads.balanced": "abc_classifier.classifier",
}


def to_published_name(name):
    """Name in `dasolib.models.WideResNet` -> name in the published state dict."""
    block = re.fullmatch(r"units\.(\d+)\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        module, _, tensor = name.rpartition(".")
        return f"{OUTSIDE[module]}.{tensor}"
    unit, index, module, tensor = block.groups()
    modules = FIRST_BLOCK if (unit, index) == ("0", "0") else OTHER_BLOCKS
    return f"encoder.unit{int(unit) + 1}.{index}.{modules[module]}.{tensor}"
