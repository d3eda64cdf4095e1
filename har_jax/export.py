"""A trained run as a Hugging Face model: `python -m har_jax.export --checkpoint=RUN --out=DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from har_jax.command_line import add_run, new_parser, path
from har_jax.errors import UserError, command

DESCRIPTION = """\
Writes a directory that transformers loads without har_jax.

  --format=llava    the whole captioner, for LlavaForConditionalGeneration and AutoProcessor
  --format=decoder  the decoder alone, for AutoModelForCausalLM, or as --config.model.lm of a run
  --format=peft     LoRA's adapters, for peft.PeftModel upon the base decoder, and the projector
                    beside them (projector.safetensors); har_jax.load_captioner(DIR) reads both

LoRA's adapters are merged into the decoder, except by --format=peft, which writes them alone.
LLaVA has no place for a captioner with a pooled projector; its native format stays. The directory
appears when it is complete; one that holds files already is left alone. A model card lies beside
the weights (README.md), with the scores of RUN/eval/* where the exported step was evaluated.

--push=owner/name uploads it to the Hugging Face hub, in one commit, with the token of
`hf auth login` or HF_TOKEN. Without --checkpoint, a directory that was exported before is uploaded.
"""

EXAMPLES = """\
examples:
  python -m har_jax.export --checkpoint=runs/scst --out=exported
  python -m har_jax.export --checkpoint=runs/scst --out=decoder --format=decoder --step=latest
  python -m har_jax.export --checkpoint=runs/scst --out=exported --push=me/captioner --private
  python -m har_jax.export --out=exported --push=me/captioner

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
    add_run(parser, required=False)
    add = parser.add_argument
    add("--out", type=path, metavar="DIR", required=True, help="a directory to make")
    forms = ["llava", "decoder", "peft"]
    # "mistral" is what "decoder" was called while there was one family.
    add("--format", choices=[*forms, "mistral"], metavar=f"{{{','.join(forms)}}}", default="llava")
    add("--license", default="", metavar="ID", help="for the model card, such as apache-2.0")
    add("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
    add("--private", action="store_true", help="with --push: only its owner may see the model")
    args = parser.parse_args(argv)
    _check(args)
    form = "decoder" if args.format == "mistral" else args.format

    from har_jax.interchange import publish

    if args.push:
        publish.check_login(args.push)
    if args.checkpoint:
        from har_jax.loading.export import Exported, export
        from har_jax.reports.card import CardSource, model_card

        def card(done: Exported) -> str:
            named = args.push or args.out
            return model_card(
                args.checkpoint, CardSource(*done[:2], named, done.text, args.license)
            )

        told = export(args.checkpoint, args.out, form=form, step=args.step, card=card)
        print(f"wrote {args.out}: {told}")
    if args.push:
        print(f"uploaded to {publish.push(args.out, args.push, private=args.private)}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """
    Raises:
      UserError: arguments that do not go together.
    """
    from har_jax.reports.card import is_license

    if not args.checkpoint and not args.push:
        raise UserError("--checkpoint is missing; give the run to export: --checkpoint=RUN")
    if args.private and not args.push:
        raise UserError("--private goes with --push=OWNER/NAME; nothing is uploaded without it")
    if args.license and not is_license(args.license):
        raise UserError(
            f"--license={args.license!r} is no identifier of a licence; give one such as "
            "apache-2.0 (small letters, digits, . and -)"
        )
    if args.license and not args.checkpoint:
        raise UserError("--license goes with --checkpoint; the card of --out is written already")


if __name__ == "__main__":
    raise SystemExit(main())
