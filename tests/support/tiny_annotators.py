"""The annotation's real models, tiny and untrained, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {**LAYERS, "intermediate_size": 16}
EYE = {**SMALL, "image_size": 32, "patch_size": 16}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", ".", ",", "a", "dog", "ball", "hot")


def write_models(folder: Path) -> Path:
    """Writes the folders blip, blip2, dino, sam and sam2."""
    import transformers as T

    kinds = {
        "blip": T.BlipForConditionalGeneration,
        "blip2": T.Blip2ForConditionalGeneration,
        "dino": T.GroundingDinoForObjectDetection,
        "sam": T.SamModel,
        "sam2": T.Sam2Model,
    }
    configs = {
        "blip": _blip(T),
        "blip2": _blip2(T),
        "dino": _grounding_dino(T),
        "sam": _sam(T),
        "sam2": _sam2(T),
    }
    processors = _processors(T)
    torch.manual_seed(0)
    for name, kind in kinds.items():
        kind(configs[name]).save_pretrained(folder / name)
        processors[name].save_pretrained(folder / name)
    return folder


def _blip(T):
    text = {
        **SMALL,
        **ENDS,
        "vocab_size": 20,
        "encoder_hidden_size": 16,
        "projection_dim": 8,
        "sep_token_id": 3,
    }
    return T.BlipConfig(text_config=text, vision_config=EYE, projection_dim=8)


def _blip2(T):
    opt = {
        **LAYERS,
        **ENDS,
        "model_type": "opt",
        "vocab_size": 40,
        "ffn_dim": 16,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": 128,
    }
    queries = {**SMALL, "encoder_hidden_size": 16, "vocab_size": 20}
    return T.Blip2Config(
        vision_config=EYE,
        qformer_config=queries,
        text_config=opt,
        num_query_tokens=4,
        image_token_index=12,
    )


def _grounding_dino(T):
    backbone = T.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1] * 3,
        num_heads=[1] * 3,
        window_size=2,
        out_features=["stage1", "stage2", "stage3"],
    )
    text = {"model_type": "bert", "vocab_size": 20, "max_position_embeddings": 64, **SMALL}
    return T.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=8,
        num_feature_levels=3,
        max_text_len=32,
    )


def _segmenter_parts() -> tuple[dict, dict]:
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    return prompt, {**LAYERS, "mlp_dim": 16, "iou_head_hidden_dim": 16}


def _sam(T):
    prompt, mask = _segmenter_parts()
    vision = {
        **LAYERS,
        "output_channels": 16,
        "image_size": 64,
        "patch_size": 16,
        "mlp_dim": 16,
        "global_attn_indexes": [0],
        "window_size": 2,
        "num_pos_feats": 8,
    }
    return T.SamConfig(
        vision_config=vision,
        prompt_encoder_config={**prompt, "image_embedding_size": 4},
        mask_decoder_config=mask,
    )


def _sam2(T):
    prompt, mask = _segmenter_parts()
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "blocks_per_stage": [1] * 4,
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1] * 4,
        "window_size_per_stage": [2] * 4,
        "global_attention_blocks": [],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = {
        "backbone_config": hiera,
        "backbone_channel_list": [64, 32, 16, 8],
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    return T.Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask
    )


def _processors(T) -> dict:
    square = {"height": 64, "width": 64}
    eye = T.BlipImageProcessor(size={"height": 32, "width": 32})
    dino = T.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    sam = T.SamImageProcessor(size={"longest_edge": 64}, pad_size=square)
    sam2 = T.Sam2ImageProcessor(size=square, mask_size={"height": 16, "width": 16})
    return {
        "blip": T.BlipProcessor(eye, _tokenizer(T)),
        "blip2": T.Blip2Processor(eye, _tokenizer(T), num_query_tokens=4),
        "dino": T.GroundingDinoProcessor(dino, _tokenizer(T)),
        "sam": T.SamProcessor(sam),
        "sam2": T.Sam2Processor(sam2),
    }


def _tokenizer(T):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )
