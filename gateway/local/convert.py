"""Turn one GGUF file into a folder that loads fast: bf16 safetensors, tokenizer and chat template. Run as a process.

    python -m gateway.local.convert SOURCE.gguf TARGET

Knows nothing of where the file came from. Unpacking a GGUF takes half a minute at every load; the folder takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.local.quiet import hush


def convert(source: Path, target: Path) -> None:
    """Write `target` (an existing folder) from the GGUF `source`. Prints one line a step."""
    hush()
    import torch  # noqa: PLC0415 - after hush()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415 - as above

    print("reading the tokenizer", flush=True)  # noqa: T201 - standard output is this process's progress
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)
    print("unpacking the weights to bf16", flush=True)  # noqa: T201
    # Without dequantize=True the model stays packed and refuses to be saved.
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=unpacked
    )
    model.to(torch.bfloat16).save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
