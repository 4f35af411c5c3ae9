"""The model of a job: its folder, its tokenizer, its weights, and which of them are trained."""
