"""A network of the SAM family from ONNX files, where a user has some. What `peers.py` can measure too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from classical import Floats, library, obeying, standing

from napari_apprentice.types import Box, ImageSlice, Prediction, Prompt, WeightsError
from napari_apprentice.windows import cut


class SamSegmenter:
    """A network of the SAM family (Kirillov et al., 2023) from ONNX files (implements `types.Segmenter`; it does not learn).

    The encoder turns one picture into an embedding, kept for the slice; the decoder is as ``scripts/export_onnx_model.py`` of
    segment-anything writes it. From the second click on it also sees its previous mask; of several masks the one is taken that
    segment-anything would take.

    Parameters
    ----------
    encoder : takes (1, 3, n, n) standardised RGB padded at the bottom and on the right, or (h, w, 3) RGB in 0..255
    decoder : takes `INPUTS`
    """

    INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
    MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    SIDE, MASK_SIDE = 1024, 256
    name = "SAM (ONNX)"

    def __init__(self, encoder: Any, decoder: Any) -> None:
        (entry, *more), names = encoder.get_inputs(), tuple(i.name for i in decoder.get_inputs())
        if more or len(entry.shape) not in (3, 4):
            raise WeightsError(
                f"an encoder with the inputs {[(i.name, i.shape) for i in (entry, *more)]} arrived; expected one, (1, 3, n, n) or (h, w, 3)"
            )
        if set(names) != set(self.INPUTS):
            raise WeightsError(f"a decoder with the inputs {', '.join(names)} arrived; expected {', '.join(self.INPUTS)}")
        self.encoder, self.decoder, self.entry = encoder, decoder, entry
        self.outputs = [o.name for o in decoder.get_outputs()]
        if not {"masks", "iou_predictions"} <= set(self.outputs):
            raise WeightsError(f"a decoder with the outputs {', '.join(self.outputs)} arrived; expected masks and iou_predictions")
        self.side = next((s for s in entry.shape[::-1] if isinstance(s, int) and s > 3), self.SIDE)
        self.clock = {"encode": 0.0, "decode": 0.0, "adapt": 0.0}
        self._known: tuple[Any, Any] = (None, None)

    @classmethod
    def open(cls, encoder: Path, decoder: Path, threads: int = 1) -> SamSegmenter:
        """From two files.

        Raises
        ------
        InputError : onnxruntime is missing
        WeightsError : a file is missing, is not ONNX, or is of another format
        """
        runtime = library("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions = []
        for path in (encoder, decoder):
            try:
                sessions.append(runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
            except Exception as error:  # the runtime has no error of its own to catch
                said = str(error).splitlines()[0]
                raise WeightsError(f"{path} cannot be run ({said}); expected an ONNX file of segment-anything's format") from error
        return cls(*sessions)

    def predict(self, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        """The mask for all clicks so far."""
        began = time.perf_counter()
        embedding = self._embedding(image_slice)
        encoded = time.perf_counter()
        logits, score = self._decode(embedding, prompt, image_slice.shape)
        self.clock["encode"] += encoded - began
        self.clock["decode"] += time.perf_counter() - encoded
        whole = Box(0, 0, *image_slice.shape)
        return Prediction(obeying(logits, whole, standing(prompt.clicks)), whole, image_slice.shape, score=score)

    def snapshot(self) -> None:
        """Nothing is ever learnt."""

    def restore(self, snapshot: None) -> None:
        """Nothing was learnt."""

    def _embedding(self, image_slice: ImageSlice) -> Any:
        if image_slice.key is None or self._known[0] != image_slice.key:
            pixels = torch.from_numpy(255 * np.moveaxis(pixels_in_slice(image_slice), -1, 0))[None]
            pixels = F.interpolate(pixels, size=self._shown(image_slice.shape), mode="bilinear", antialias=True)
            if len(self.entry.shape) == 4:
                pixels = (pixels - torch.tensor(self.MEAN)[:, None, None]) / torch.tensor(self.DEVIATION)[:, None, None]
                picture = F.pad(pixels, (0, self.side - pixels.shape[3], 0, self.side - pixels.shape[2])).numpy()
            else:
                picture = np.ascontiguousarray(np.moveaxis(pixels[0].numpy(), 0, -1))
            self._known = image_slice.key, self.encoder.run(None, {self.entry.name: picture})[0]
        return self._known[1]

    def _decode(self, embedding: Any, prompt: Prompt, shape: tuple[int, int]) -> tuple[Floats, float]:
        clicks, scale = standing(prompt.clicks), max(self._shown(shape)) / max(shape)
        points = [((c.voxel[1] + 0.5) * scale, (c.voxel[0] + 0.5) * scale) for c in clicks]  # (x, y)
        coordinates = np.array([[*points, (0.0, 0.0)]], np.float32)  # without a box, a point of label -1 closes the list
        labels = np.array([[*(float(c.positive) for c in clicks), -1.0]], np.float32)
        mask = np.zeros((1, 1, self.MASK_SIDE, self.MASK_SIDE), np.float32)
        if prompt.previous is not None:
            full = Box(0, 0, max(shape), max(shape))
            mask[0, 0] = cut(whole_logits(prompt.previous)[None], full, self.MASK_SIDE, fill=-20.0)[0].numpy()
        has_mask, size = np.array([prompt.previous is not None], np.float32), np.array(shape, np.float32)
        values = (embedding, coordinates, labels, mask, has_mask, size)
        found = dict(zip(self.outputs, self.decoder.run(self.outputs, dict(zip(self.INPUTS, values, strict=True))), strict=True))
        masks, scores = found["masks"][0], found["iou_predictions"][0]
        if masks.shape[1:] != shape:
            raise WeightsError(f"the decoder answered with masks of shape {masks.shape} for a slice of shape {shape}; expected its size")
        best = int(np.argmax(scores)) if len(scores) != 4 else 0 if len(clicks) > 1 else 1 + int(np.argmax(scores[1:]))
        return np.array(masks[best], dtype=np.float32), float(scores[best])

    def _shown(self, shape: tuple[int, int]) -> tuple[int, int]:
        rows, cols = (int(s * self.side / max(shape) + 0.5) for s in shape)
        return rows, cols


def pixels_in_slice(image_slice: ImageSlice) -> Floats:
    """(H, W, 3) in 0..1; RGB of 8 bits as it is, anything else spread between its ends."""
    data = image_slice.data.astype(np.float32)
    low, high = (0.0, 255.0) if image_slice.data.dtype == np.uint8 else (float(data.min()), float(data.max()))
    return np.moveaxis(np.broadcast_to((data - low) / (high - low), (3, *data.shape[1:])), 0, -1)


def whole_logits(prediction: Prediction) -> Floats:
    full = np.full(prediction.shape, -20.0, np.float32)
    full[prediction.box.slices] = prediction.logits
    return full
