"""Small versions of Hugging Face architectures with random weights, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

LABELS = {"neu": "neutral", "hap": "happy", "ang": "angry", "sad": "sad"}

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,  # large, so that the output depends visibly on the input
}
SOUND: dict[str, Any] = {
    **SHAPE,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
IMAGE: dict[str, Any] = {**SHAPE, "image_size": 32, "patch_size": 8}
CLASSES: dict[str, Any] = {"id2label": dict(enumerate(LABELS))}
SQUARE = {"height": 32, "width": 32}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "vocab_size": 100,
    "init_std": 0.3,
    **{f"{half}_layers": 1 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 64 for half in ("encoder", "decoder")},
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}


t: Any = transformers


def _masked() -> Any:
    return t.Wav2Vec2FeatureExtractor(return_attention_mask=True)


def _sound(kind: str, **settings: Any) -> Any:
    return getattr(t, f"{kind}Config")(**SOUND, **{"feat_extract_norm": "layer", **settings})


def _videomae(net: Any, **settings: Any) -> tuple[Any, Any]:
    processor = t.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    return net(t.VideoMAEConfig(**IMAGE, num_frames=4, **settings)), processor


def _clip() -> tuple[Any, Any]:
    text = {**SHAPE, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    config = t.CLIPConfig(text_config=text, vision_config=IMAGE)
    processor = t.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE)
    return t.CLIPModel(config), processor


def _resnet() -> tuple[Any, Any]:
    config = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **CLASSES
    )
    processor = t.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return t.ResNetForImageClassification(config), processor


# Each entry builds a model and its feature extractor or image processor.
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wav2vec2": lambda: (
        t.Wav2Vec2ForSequenceClassification(_sound("Wav2Vec2", **CLASSES)),
        _masked(),
    ),
    "wav2vec2-group-norm": lambda: (
        t.Wav2Vec2ForSequenceClassification(
            _sound("Wav2Vec2", **CLASSES, feat_extract_norm="group")
        ),
        t.Wav2Vec2FeatureExtractor(return_attention_mask=False),
    ),
    "wav2vec2-encoder": lambda: (t.Wav2Vec2Model(_sound("Wav2Vec2")), _masked()),
    "hubert-encoder": lambda: (t.HubertModel(_sound("Hubert")), _masked()),
    "wavlm-encoder": lambda: (t.WavLMModel(_sound("WavLM")), _masked()),
    "ast": lambda: (
        t.ASTForAudioClassification(
            t.ASTConfig(**SHAPE, **CLASSES, max_length=128, num_mel_bins=32)
        ),
        t.ASTFeatureExtractor(max_length=128, num_mel_bins=32),
    ),
    "whisper": lambda: (
        t.WhisperForConditionalGeneration(t.WhisperConfig(**WHISPER)),
        t.WhisperFeatureExtractor(),
    ),
    "vit": lambda: (
        t.ViTForImageClassification(t.ViTConfig(**IMAGE, **CLASSES)),
        t.ViTImageProcessorPil(size=SQUARE),
    ),
    "vit-encoder": lambda: (t.ViTModel(t.ViTConfig(**IMAGE)), t.ViTImageProcessorPil(size=SQUARE)),
    "dinov2-encoder": lambda: (
        t.Dinov2Model(t.Dinov2Config(**IMAGE)),
        t.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    ),
    "resnet": _resnet,
    "videomae": lambda: _videomae(t.VideoMAEForVideoClassification, **CLASSES),
    "videomae-encoder": lambda: _videomae(t.VideoMAEModel),
    "clip": _clip,
}


def save(name: str, folder: Path) -> Path:
    """Save a model with its processor in `folder`; it is the same on every call."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
