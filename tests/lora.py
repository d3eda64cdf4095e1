"""What tests of LoRA share."""

LORA = {
    "model__lora__rank": 4,
    "model__lora__alpha": 8,
    "model__lora__targets": "attn.(q|k|v|o)|mlp.down|lm_head",
    "optim__lr": 3e-2,
    "optim__name": "adamw",
    "data__val_split": "",
}


def mistake(capsys, command, *argv):
    assert command.main([str(arg) for arg in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
