"""Makes a peer's model of a BERT encoder, with or without a classifier's head, by that peer's own means and defaults.

    python peers_make.py WHAT CHECKPOINT CALIBRATION OUT_FOLDER

CALIBRATION is what `plain_session.py` takes as rows. Nothing of ioptim is imported here.

Runs under the peer's interpreter and prints the file made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CALIBRATION_ROWS = 256
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def exported(checkpoint: str, out: Path) -> Path:
    """By torch's TorchScript exporter, whose graphs ONNX Runtime's own fusions know; axes of batch and tokens stay variable."""
    import torch
    from plain_session import model_class

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model_class(checkpoint).from_pretrained(checkpoint, attn_implementation="eager").eval()

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.module(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]

    path = out / "exported.onnx"
    if not path.is_file():
        example = torch.ones(2, 8, dtype=torch.long)
        tokens = {0: "batch", 1: "sequence"}
        output = {"last_hidden_state": tokens} if is_bare(checkpoint) else {"logits": {0: "batch"}}
        axes = dict.fromkeys(INPUTS, tokens) | output
        torch.onnx.export(
            Named(), (example, example, example * 0), str(path), input_names=[*INPUTS], output_names=[*output],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )  # fmt: skip
    return path


def is_bare(checkpoint: str) -> bool:
    """Gives the tokens' vectors, not logits."""
    from plain_session import model_class

    return not model_class(checkpoint).__name__.endswith("ForSequenceClassification")


def rows(checkpoint: str, file: str) -> Iterator[dict[str, Any]]:
    """Feeds of the first rows, one by one."""
    import numpy as np
    from plain_session import read
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{checkpoint}/tokenizer.json")
    tokenizer.no_padding()
    for text in read(Path(file))[0][:CALIBRATION_ROWS]:
        tokens = tokenizer.encode(text)
        yield dict(zip(INPUTS, (np.array([v], np.int64) for v in (tokens.ids, tokens.attention_mask, tokens.type_ids)), strict=True))


def onnxruntime_dynamic(checkpoint: str, file: str, out: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(exported(checkpoint, out), out / "dynamic.onnx", weight_type=QuantType.QInt8)
    return out / "dynamic.onnx"


def onnxruntime_fused_dynamic(checkpoint: str, file: str, out: Path) -> Path:
    """Fused by onnxruntime.transformers first: the fastest way known for ONNX Runtime on a CPU."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    fused = optimize_model(
        str(exported(checkpoint, out)), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    counts = fused.get_fused_operator_statistics()
    if not counts.get("Attention"):
        raise SystemExit(f"attention did not fuse: {counts}")
    fused.save_model_to_file(str(out / "fused.onnx"))
    # Behind its own fused operators the library cannot infer types; every weight is float32.
    known = {"DefaultTensorType": 1}
    quantize_dynamic(out / "fused.onnx", out / "fused-dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True, extra_options=known)
    return out / "fused-dynamic.onnx"


def onnxruntime_static(checkpoint: str, file: str, out: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = rows(checkpoint, file)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    quant_pre_process(exported(checkpoint, out), out / "prepared.onnx", skip_symbolic_shape=True)
    quantize_static(out / "prepared.onnx", out / "static.onnx", Reader())
    return out / "static.onnx"


def optimum(checkpoint: str, file: str, out: Path) -> Path:
    """Optimum's export and its dynamic quantization for AVX-512 VNNI.

    Not after its optimization O2: optimum-onnx 0.1.0 cannot quantize what it fused ("Unable to find data type for weight_name").
    """
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForSequenceClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    kind = ORTModelForFeatureExtraction if is_bare(checkpoint) else ORTModelForSequenceClassification
    kind.from_pretrained(checkpoint, export=True).save_pretrained(out / "optimum-exported")
    quantizer = ORTQuantizer.from_pretrained(out / "optimum-exported", file_name="model.onnx")
    quantizer.quantize(save_dir=out / "optimum", quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False))
    return out / "optimum/model_quantized.onnx"


def openvino_float(checkpoint: str, file: str, out: Path) -> Path:
    """Float weights; on a CPU that has bfloat16 OpenVINO computes in it by itself."""
    import openvino

    openvino.save_model(openvino.convert_model(exported(checkpoint, out)), out / "openvino.xml", compress_to_fp16=False)
    return out / "openvino.xml"


def openvino_nncf(checkpoint: str, file: str, out: Path) -> Path:
    import nncf
    import openvino

    model = openvino.Core().read_model(openvino_float(checkpoint, file, out))
    data = nncf.Dataset(list(rows(checkpoint, file)))
    made = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION_ROWS)
    openvino.save_model(made, out / "nncf.xml", compress_to_fp16=False)
    return out / "nncf.xml"


MAKERS: Mapping[str, Callable[[str, str, Path], Path]] = {
    "onnxruntime": lambda checkpoint, file, out: exported(checkpoint, out),
    "onnxruntime_dynamic": onnxruntime_dynamic,
    "onnxruntime_fused_dynamic": onnxruntime_fused_dynamic,
    "onnxruntime_static": onnxruntime_static,
    "optimum": optimum,
    "openvino": openvino_float,
    "openvino_nncf": openvino_nncf,
}

if __name__ == "__main__":
    what, checkpoint, file, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(f"made {MAKERS[what](checkpoint, file, Path(folder)).absolute()}")
