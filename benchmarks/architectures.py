"""config.json of the benchmarks' models, from which ours and transformers' are both made.

Of the published ones only what differs from the family's defaults is written down, as in the files themselves.
"""

from typing import Any

Json = dict[str, Any]

# google/siglip-base-patch16-224 and HuggingFaceTB/SmolLM2-135M, joined as in the first nanoVLM (huggingface/nanoVLM,
# models/config.py of the 222M model: 2 x 2 tokens are shuffled into one). Idefics3 is the family with that projector.
NANOVLM_222M: Json = {
    "model_type": "idefics3",
    "image_token_id": 49151,
    "scale_factor": 2,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "pad_token_id": 0,
    },
    "vision_config": {
        "model_type": "idefics3_vision",
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}

# google/siglip-large-patch16-256 and the shape of meta-llama/Llama-3.2-1B, joined in the same way.
VLM_1B: Json = {
    "model_type": "idefics3",
    "image_token_id": 128255,
    "scale_factor": 2,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "pad_token_id": 0,
    },
    "vision_config": {
        "model_type": "idefics3_vision",
        "image_size": 256,
        "patch_size": 16,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}

# llava-hf/llava-1.5-7b-hf: CLIP ViT-L/14 at 336 up to its last layer but one, an MLP, and Vicuna 7B.
LLAVA_7B: Json = {
    "model_type": "llava",
    "image_token_index": 32063,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "image_size": 336,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}

# google/paligemma-3b-pt-224: SigLIP So400m/14 at 224, one matrix, and Gemma 2B.
PALIGEMMA_3B: Json = {
    "model_type": "paligemma",
    "image_token_index": 257215,
    "projection_dim": 2048,
    "text_config": {
        "model_type": "gemma",
        "vocab_size": 257216,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "projection_dim": 2048,
        "vision_use_head": False,
    },
}

# Of nobody's: a SigLIP, an MLP and a Llama that two cores train in tenths of a second a step.
TINY_VLM: Json = {
    "model_type": "llava",
    "image_token_index": 8191,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vision_use_head": False,
    },
}
