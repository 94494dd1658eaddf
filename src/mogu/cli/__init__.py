"""The command line: one thin file per command. torch, transformers and peft load inside commands only."""
