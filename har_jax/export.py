"""A trained run as a Hugging Face model: `python -m har_jax.export --checkpoint=RUN --out=DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from har_jax.command_line import add_run, new_parser, path
from har_jax.errors import command

DESCRIPTION = """\
Writes a directory that transformers loads without har_jax.

  --format=llava    the whole captioner, for LlavaForConditionalGeneration and AutoProcessor
  --format=decoder  the decoder alone, for AutoModelForCausalLM, or as --config.model.lm of a run
  --format=peft     LoRA's adapters, for peft.PeftModel upon the base decoder, and the projector
                    beside them (projector.safetensors); har_jax.load_captioner(DIR) reads both

LoRA's adapters are merged into the decoder, except by --format=peft, which writes them alone.
LLaVA has no place for a captioner with a pooled projector; its native format stays. The directory
appears when it is complete; one that holds files already is left alone.
"""

EXAMPLES = """\
examples:
  python -m har_jax.export --checkpoint=runs/scst --out=exported
  python -m har_jax.export --checkpoint=runs/scst --out=decoder --format=decoder --step=latest

then, in another program:
  processor = AutoProcessor.from_pretrained("exported")
  model = LlavaForConditionalGeneration.from_pretrained("exported")
  inputs = processor(images=image, text="<image>", return_tensors="pt")
  ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]
  print(processor.batch_decode(ids, skip_special_tokens=True))
A run with a prompt takes another text, which the command prints.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("export", DESCRIPTION, EXAMPLES)
    add_run(parser)
    add = parser.add_argument
    add("--out", type=path, metavar="DIR", required=True, help="a directory to make")
    forms = ["llava", "decoder", "peft"]
    # "mistral" is what "decoder" was called while there was one family.
    add("--format", choices=[*forms, "mistral"], metavar=f"{{{','.join(forms)}}}", default="llava")
    args = parser.parse_args(argv)
    form = "decoder" if args.format == "mistral" else args.format

    from har_jax.loading.export import export

    told = export(args.checkpoint, args.out, form=form, step=args.step)
    print(f"wrote {args.out}: {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
