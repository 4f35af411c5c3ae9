"""All words of the form that are not from the schema, in one place for other languages."""

GROUPS = {
    "job": "Job",
    "model": "Model",
    "data": "Data",
    "template": "Template",
    "tuning": "Tuning",
    "training": "Hyperparameters",
    "stage": "Settings of the stage",
    "resources": "Resources",
    "more": "More",
    "other": "Other fields",
}
ABBREVIATIONS = {
    "cpu": "CPU",
    "dora": "DoRA",
    "dpo": "DPO",
    "eos": "EOS",
    "gae": "GAE",
    "gpu": "GPU",
    "gpus": "GPUs",
    "kl": "KL",
    "kto": "KTO",
    "lora": "LoRA",
    "mlflow": "MLflow",
    "ppo": "PPO",
    "rm": "RM",
    "rs": "rank-stabilized",
    "s3": "S3",
    "sft": "SFT",
    "ttl": "TTL",
    "uri": "URI",
    "url": "URL",
    "wandb": "Weights & Biases",
}
"""Words of field names -> how people write them."""

FORM = "FineTuneJob"
CHOOSE = "Choose…"
UNSET = "Not set"
DEFAULT = "Default: {}"
DEFAULT_NONE = "Not set"
REQUIRED = "required"
BOUNDS = {"above": "more than {}", "from": "at least {}", "below": "less than {}", "to": "at most {}"}
BOUNDS_SENTENCE = "Allowed: {}."
LINES_HELP = "One on each line."
YAML_HELP = "Write YAML."
EMPTY = {
    "section": "Set it, even if all of its fields are unset",
    "map": "Set it to no entries",
    "text": "Set it to an empty text",
}
MORE_OF = "More: {}"
COUNT_SET = "{} set"
ENTRY = "{} {}"
KEY = "Key"
VALUE = "Value"
ADD = "Add: {}"
REMOVE = "Remove: {}"
SHOW_STAGE = "Show the settings of this stage"
OTHER_HELP = (
    "YAML of fields that have no control in this form, from metadata or spec on. A field that is here and above has the"
    " value that is here."
)
ERRORS_TITLE = "The job has mistakes"
ACTIONS = (("preview", "Preview"), ("check", "Check"), ("create", "Create"))
"""Value of the button `do`, and its words."""

LOAD_TITLE = "Load"
LOAD_LABEL = "YAML of a FineTuneJob, or a configuration of LLaMA-Factory"
LOAD_HELP = "It replaces what the form shows. At most {} KiB."
LOAD_ACTIONS = (("load", "Load YAML"), ("import", "Import from LLaMA-Factory"))
NOTES_TITLE = "What the import changed"

NO_YAML = "This is not YAML: {}"
NO_MAPPING = "Write a mapping: lines such as key: value"
NO_KEY = "The value {} has no key"
KEY_TWICE = "The key {} is there twice"
TOO_LARGE = "The text has {} bytes; at most {} are read"
TOO_DEEP = "The text has more than {} levels"
TOO_MANY = "The text has more than {} values"
NO_TEXT_KEY = "The key {} is no text: write it in quotes"
NO_JSON = "The value {} cannot be sent to Kubernetes: write it in quotes"
NOTHING = "The text is empty"
SEVERAL = "The text has {} documents: load one FineTuneJob"
OTHER_KIND = "The text is a {}: only a FineTuneJob of {} is loaded"
NO_IMPORT = "The text is no configuration of LLaMA-Factory that can be imported: {}"
