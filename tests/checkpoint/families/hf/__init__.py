"""Small strong transformers models of every captioner family, saved as folders, and what transformers makes of them.

`build.build` writes a folder, `layouts` rewrite it as the folders on the hub look, `reference` runs transformers on it.
This file imports nothing, so that collecting tests that only need the names below does not load transformers.
"""

FAMILIES = (
    "git",
    "blip",
    "blip-vqa",
    "vit-gpt2",
    "trocr",
    "trocr-vit",
    "smolvlm",
    "idefics3",
    "llava",
    "llava-siglip",
    "paligemma",
    "internvl",
    "florence2",
)

# What is asked of each family; None is the family's caption without a prompt.
PROMPTS = {
    "git": (None, "a photo of"),
    "blip": (None, "a photo of"),
    "blip-vqa": ("what is on the table?", "how many dogs are there?"),
    "vit-gpt2": (None, " a photo of"),
    "trocr": (None, "a photo of"),
    "trocr-vit": (None, "a photo of"),
    "smolvlm": ("Describe this image.", "What is on the table?"),
    "idefics3": ("Describe this image.", "What is on the table?"),
    "llava": ("Describe this image.", "What is on the table?"),
    "llava-siglip": ("Describe this image.", "What is on the table?"),
    "paligemma": ("caption en", "answer en what is on the table?"),
    "internvl": ("Describe this image.", "What is on the table?"),
    "florence2": ("<CAPTION>", "<DETAILED_CAPTION>"),
}
