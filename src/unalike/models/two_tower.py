"""`vl:two-tower`: a reader of sentences and a network for photographs, both frozen, and a small transformer on top.

    t = MiniLM(question) Wt,  v = EfficientNet-Lite0(image) Wv      tokens of width d
    h = ViltLayers([t + kind 0, v + kind 1 + place])
    features = tanh(W LN(h_first) + b)                              the question's first token

The towers are as others trained them: MiniLM-L6 (Wang et al., 2020, arXiv:2002.10957), whose last hidden states are
read, and EfficientNet-Lite0 (Tan and Le, 2019, arXiv:1905.11946, without squeeze-and-excitation, with ReLU6), whose
features at a sixteenth of the image's side are read, each place a token. The fusion is trained by
`python -m unalike.scenes two-tower`, and it alone carries adapters: `Base` looks for their places in `fusion`.
"""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .multimodal import additive, through, with_prompt

WEIGHTS = "model.safetensors"
STAGES = ((1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80), (3, 6, 5, 1, 112))
"""Of EfficientNet-Lite0 up to a sixteenth of the side: blocks, expansion, kernel, first stride, channels."""
STEM, SHRINKS = 32, 16


class TwoTower(nn.Module):
    """The towers and what joins them."""

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Args:
            config: "text" and "fusion", the configurations of a BertModel and of the ViltLayers, and "image_size".
        """
        super().__init__()
        transformers = importlib.import_module("transformers")
        self.text = transformers.BertModel(transformers.BertConfig(**config["text"]), add_pooling_layer=False)
        self.vision = Lite()
        fusion = transformers.ViltConfig(**config["fusion"])
        self.width = int(fusion.hidden_size)
        self.fusion = Fusion(fusion, self.text.config.hidden_size, (config["image_size"] // SHRINKS) ** 2)

    def train(self, mode: bool = True) -> TwoTower:
        """The towers always compute as in evaluation."""
        super().train(mode)
        self.text.eval()
        self.vision.eval()
        return self

    @torch.no_grad()
    def read(self, x: Tensor, read: Tensor) -> Tensor:
        """(B, T, dt): what the reader makes of token ids (B, T) where `read` (B, T)."""
        hidden = self.text.embeddings(input_ids=x)
        return through(self.text.encoder.layer, hidden, additive(read, hidden.dtype))

    @torch.no_grad()
    def seen(self, pixels: Tensor) -> Tensor:
        """(B, P, dv): what the other tower makes of images (B, 3, side, side), place by place."""
        found: Tensor = self.vision(pixels).flatten(2).transpose(1, 2)
        return found

    def forward(
        self, x: Tensor, read: Tensor, pixels: Tensor, pictured: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        """Features (B, d) of token ids (B, T) where `read` (B, T), and of images (B, 3, side, side), scaled as
        preprocessor_config.json says, where `pictured` (B,); a soft prompt (P, d) stands after the first token."""
        found: Tensor = self.fusion(self.read(x, read), self.seen(pixels), read, pictured, prompt)
        return found


class Fusion(nn.Module):
    """A transformer over the tokens of both towers."""

    def __init__(self, config: Any, text: int, places: int) -> None:
        super().__init__()
        d, layer = int(config.hidden_size), importlib.import_module("transformers.models.vilt.modeling_vilt").ViltLayer
        self.text, self.image = nn.Linear(text, d), nn.Linear(STAGES[-1][-1], d)
        self.kinds = nn.Parameter(0.1 * torch.randn(2, d))
        self.place = nn.Parameter(0.5 * torch.randn(places, d))
        self.layer = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))
        self.layernorm, self.dense = nn.LayerNorm(d, eps=config.layer_norm_eps), nn.Linear(d, d)

    def forward(
        self, text: Tensor, image: Tensor, read: Tensor, pictured: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        hidden = torch.cat([self.text(text) + self.kinds[0], self.image(image) + self.kinds[1] + self.place], 1)
        seen = torch.cat([read, pictured[:, None].expand(-1, image.shape[1])], 1)
        hidden, seen = with_prompt(hidden, seen, prompt)
        hidden = through(list(self.layer), hidden, additive(seen, hidden.dtype))
        return torch.tanh(self.dense(self.layernorm(hidden[:, 0])))


class Lite(nn.Sequential):
    """EfficientNet-Lite0 up to a sixteenth of the side: (B, 3, side, side) to (B, 112, side / 16, side / 16)."""

    def __init__(self) -> None:
        blocks, inputs = [], STEM
        for repeats, expansion, kernel, stride, outputs in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        super().__init__(_Convolution(3, STEM, 3, 2), nn.ReLU6(), *blocks)


class Block(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        wide = [_Convolution(inputs, inner, 1, 1), nn.ReLU6()] if expansion > 1 else []
        each = _Convolution(inner, inner, kernel, stride, groups=inner)
        self.body = nn.Sequential(*wide, each, nn.ReLU6(), _Convolution(inner, outputs, 1, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x)
        return found + x if self.adds else found


class _Convolution(nn.Module):
    """Without bias, padded as TensorFlow pads ("same": the odd pixel on the right and below), then normalised."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            more = max(0, (math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size)
            pads += [more // 2, more - more // 2]
        found: Tensor = self.norm(self.convolution(F.pad(x, pads)))
        return found


def load(folder: Path, dtype: torch.dtype) -> TwoTower:
    """The model in a folder with config.json and `WEIGHTS`; `InputError` where they do not belong together."""
    config = json.loads((folder / "config.json").read_text())
    model = TwoTower(config)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder / WEIGHTS} is not of the model that config.json there describes: {reason}") from None
    return model.to(dtype).eval()
