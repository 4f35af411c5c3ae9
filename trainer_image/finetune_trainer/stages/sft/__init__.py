"""Stage sft: supervised fine-tuning on prompts and answers."""
