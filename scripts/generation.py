"""How fast is `generate`? Against transformers' on the same weights, in one run, one thread.

    pip install -e ".[hf]" transformers && python scripts/generation.py

A ragged batch of 16 prompts, 128 new tokens, greedy, with a cache; both write the same tokens.
Alternating, medians; prints seconds and the ratio, and with --write puts the table in
notebooks/generation.md.
"""

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from minitransformer import generate, pad
from minitransformer.pretrained import load_pretrained

OUT = Path(__file__).parent.parent / "notebooks" / "generation.md"
NEW, BATCH, LONGEST = 128, 16, 64


def models() -> dict[str, transformers.PreTrainedModel]:
    """Random weights: the time does not depend on them, and the tokens vary."""
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(
        vocab_size=8000, n_embd=512, n_layer=6, n_head=8, n_positions=256, eos_token_id=None
    )
    llama = transformers.LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return {
        "GPT-2": transformers.GPT2LMHeadModel(gpt2),
        "Llama": transformers.LlamaForCausalLM(llama),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, LONGEST + 1, (BATCH,), generator=generator).tolist()
    rows = [torch.randint(8000, (n,), generator=generator).tolist() for n in lengths]
    batch = pad(rows, side="left")  # the only side that theirs takes

    lines = [
        "| model | parameters | transformers, s | ours, s | ours is faster by | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, theirs in models().items():
        for parameter in theirs.parameters():  # larger than at the start, so that tokens vary
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.06)
        theirs.eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = load_pretrained(folder)

        def with_theirs(model=theirs):
            return model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )[:, batch.input_ids.shape[1] :]

        def with_ours(model=ours):
            return torch.stack(generate(model, batch.input_ids, batch.attention_mask, NEW))

        expected, found = with_theirs(), with_ours()
        same = (expected == found).double().mean().item()
        times: dict[str, list[float]] = {"theirs": [], "ours": []}
        for _ in range(options.rounds):
            for who, run in (("theirs", with_theirs), ("ours", with_ours)):
                start = time.perf_counter()
                run()
                times[who].append(time.perf_counter() - start)
        theirs_s, ours_s = (statistics.median(times[who]) for who in ("theirs", "ours"))
        size = sum(p.numel() for p in ours.parameters()) / 1e6
        lines.append(
            f"| {name} | {size:.1f} M | {theirs_s:.2f} | {ours_s:.2f} "
            f"| {theirs_s / ours_s:.2f} × | {same:.1%} |"
        )
        print(lines[-1], flush=True)
    about = (
        f"{BATCH} prompts of 8 to {LONGEST} tokens, {NEW} new ones each, greedy, with a cache, one "
        f"CPU thread ({platform.machine()}), median of {options.rounds} alternating rounds; torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {datetime.date.today()}. "
        "Where tokens differ, two of them were equally likely up to rounding, and what follows "
        "follows from that."
    )
    text = "\n".join(["# Generation, measured", "", about, "", *lines, ""])
    print(text)
    if options.write:
        OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
