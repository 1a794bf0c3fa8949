"""Tables of names that several families share: blocks in the spellings of CLIP, BERT and Llama."""

from mmt_cli.checkpoint.keymap import Rule

WB = "{weight|bias}"


def affine(pairs: dict[str, str], theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """Return a rule for the weight and bias of each pair of modules, whose names begin with `theirs` and `ours`."""
    return tuple(Rule(f"{theirs}{a}.{WB}", f"{ours}{b}.{WB}") for a, b in pairs.items())


def clip_tower(theirs: str, ours: str = "vision.") -> tuple[Rule, ...]:
    """Return the rules for a tower of CLIP or SigLIP, whose names begin with `theirs`."""
    layer = {
        "self_attn.{q_proj|k_proj|v_proj}": "attention.inner.qkv",
        "self_attn.out_proj": "attention.inner.out",
        "layer_norm1": "attention.norm",
        "mlp.fc1": "mlp.inner.up",
        "mlp.fc2": "mlp.inner.down",
        "layer_norm2": "mlp.norm",
    }
    whole = {
        "embeddings.patch_embedding": "embedding",
        "pre_layrnorm": "embedding_norm",  # sic
        "post_layernorm": "norm",
    }
    return (
        Rule(theirs + "embeddings.class_embedding", ours + "class_token"),
        Rule(theirs + "embeddings.position_embedding.weight", ours + "positions"),
        Rule(theirs + "embeddings.position_ids", None),
        *affine(whole, theirs, ours),
        *affine(layer, theirs + "encoder.layers.{i}.", ours + "blocks.{i}."),
    )


def bert_layers(theirs: str, ours: str, *, cross: bool) -> tuple[Rule, ...]:
    """Return the rules for BERT's layers."""
    layer = {
        "attention.self.{query|key|value}": "attention.inner.qkv",
        "attention.output.dense": "attention.inner.out",
        "attention.output.LayerNorm": "attention.norm",
        "intermediate.dense": "mlp.inner.up",
        "output.dense": "mlp.inner.down",
        "output.LayerNorm": "mlp.norm",
    }
    attending = {
        "crossattention.self.query": "cross_attention.inner.q",
        "crossattention.self.{key|value}": "cross_attention.inner.kv",
        "crossattention.output.dense": "cross_attention.inner.out",
        "crossattention.output.LayerNorm": "cross_attention.norm",
    }
    return affine(layer | attending if cross else layer, theirs, ours)


def llama_layers(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules for the layers of Llama, Qwen2 and Gemma."""
    layer = {
        "self_attn.{q_proj|k_proj|v_proj}": "attention.inner.qkv",
        "self_attn.o_proj": "attention.inner.out",
        "input_layernorm": "attention.norm",
        "mlp.gate_proj": "mlp.inner.up",
        "mlp.up_proj": "mlp.inner.multiplier",
        "mlp.down_proj": "mlp.inner.down",
        "post_attention_layernorm": "mlp.norm",
    }
    return (Rule(theirs + "self_attn.rotary_emb.inv_freq", None), *affine(layer, theirs, ours))
