"""Opens exported folders with the last `transformers` that had a Transformer-XL of its own.

Run as a file by its Python: `python -P last_release.py <folder>`. Each folder in it has an export,
`expected.safetensors` beside it: ids of a row, log probabilities of both of its halves, and what
precedes it where that is not what the release takes.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


@torch.no_grad()
def differences(folder: Path) -> dict[str, object]:
    expected = load_file(folder / "expected.safetensors")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "export", output_loading_info=True
    )
    model.eval()
    ids, mems = expected["ids"], None
    if "nothing" in expected:
        mems = [expected["nothing"]] * model.config.n_layer
    found = []
    for half, row in zip(("first", "second"), ids.chunk(2, dim=1), strict=True):
        out = model(row, mems=mems)
        mems = out.mems
        found.append(float((out.logits - expected[half]).abs().max()))
    longer = model.generate(ids[:, :4], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return {
        "class": type(model).__module__,
        "version": transformers.__version__,
        "loading": [f"{key}: {value}" for key, value in info.items() if value],
        "differences": found,
        "generated": longer.shape[1] - 4,
    }


if __name__ == "__main__":
    folders = sorted(Path(sys.argv[1]).iterdir())
    print(json.dumps({folder.name: differences(folder) for folder in folders}))
