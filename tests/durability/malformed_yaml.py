"""YAMLs that are malformed, and the words that the message on each must hold."""

import json

from tests.durability.malformed import YAML, Case, training, whole, yaml


def bomb(depth: int = 9) -> str:
    """Aliases of aliases: 10 to the power of `depth` texts, when written out."""
    inner = "&b0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"
    for level in range(1, depth):
        inner = f"&b{level} [{inner}, {', '.join([f'*b{level - 1}'] * 9)}]"
    return inner


ALIAS = "bot.yaml: alias contains itself"
TRAINING = "training: {learning_rate: 5e-3, max_steps: 2, per_device_train_batch_size: 4}"
BOMB = "bot.yaml: 100,000 values alias"
TASK = "  - {name: one, train: one.jsonl, eval: one_eval.jsonl}"
METHOD = "method: {name: gorp, rank: 4, refresh_every: 3}"

YAMLS: list[Case] = [
    whole("an empty YAML", b"", "bot.yaml: wanted a mapping"),
    whole("only a comment", b"# nothing\n", "bot.yaml: wanted a mapping"),
    whole("bytes", bytes(range(256)) * 8, "bot.yaml: UTF-8"),
    whole("UTF-16", YAML.encode("utf-16"), "bot.yaml: UTF-8"),
    whole("a NUL", YAML.encode().replace(b"seed: 0", b"seed: 0\0"), "bot.yaml: not YAML"),
    whole("two documents", f"{YAML}---\n{YAML}".encode(), "bot.yaml: not YAML single document"),
    whole("tabs", YAML.replace("  - {", "\t- {").encode(), "bot.yaml: not YAML line 9"),
    whole("5000 brackets", YAML.replace("seed: 0", f"seed: {'[' * 5000}{']' * 5000}").encode(), "bot.yaml: nested"),
    yaml("a key twice", "seed: 0", "seed: 0\nseed: 1", "bot.yaml: key `seed` twice"),
    yaml("a nested key twice", "rank: 4", "rank: 4, rank: 5", "bot.yaml: key `rank` twice"),
    yaml("a Python object", "seed: 0", "seed: !!python/object/apply:os.system ['true']", "bot.yaml: tag"),
    yaml("a seed that refers to itself", "seed: 0", "seed: &s [*s]", ALIAS),
    yaml("a method that refers to itself", "{name: gorp", "&m {name: gorp, mode: *m", ALIAS),
    yaml("a bomb as seed", "seed: 0", f"seed: {bomb()}", BOMB),
    yaml("a bomb as method", METHOD, f"method: {bomb()}", BOMB),
    yaml("a bomb as learning rate", "5e-3", bomb(), BOMB),
    yaml("a bomb as name", "name: one", f"name: {bomb()}", BOMB),
    yaml("a bomb as labels", "eval: one_eval.jsonl", f"eval: one_eval.jsonl, labels: {bomb()}", BOMB),
    yaml("a bomb under an unknown key", "seed: 0", f"other: {bomb()}", BOMB),
    yaml("a bomb as margin", "margin: 2.0", f"margin: {bomb()}", BOMB),
    yaml("a seed of 5000 digits", "seed: 0", f"seed: {'1' * 5000}", "bot.yaml: digits"),
    yaml("a seed of 31 digits", "seed: 0", f"seed: {10**30}", "bot.yaml: seed"),
    yaml("seed true", "seed: 0", "seed: true", "bot.yaml: seed"),
    yaml("seed -1", "seed: 0", "seed: -1", "bot.yaml: seed"),
    yaml("training as a list", TRAINING, "training: [1]", "bot.yaml: training mapping"),
    yaml("lora 0", "lora: {r: 4, target_modules: all-linear}", "lora: 0", "bot.yaml: lora mapping"),
    yaml("lora as text", "lora: {r: 4, target_modules: all-linear}", "lora: ''", "bot.yaml: lora mapping"),
    yaml("eval false", "eval: {max_new_tokens: 2}", "eval: false", "bot.yaml: eval mapping"),
    yaml("method as text", METHOD, "method: gorp", "bot.yaml: method mapping"),
    yaml("an unknown method", "name: gorp", "name: grop", "bot.yaml: grop gorp"),
    yaml("a method without a name", "{name: gorp, ", "{", "bot.yaml: method name"),
    yaml("model as text", "model: {path: ./model}", "model: gorp-tiny-t5", "bot.yaml: model mapping"),
    yaml("no model", "model: {path: ./model}\n", "", "bot.yaml: model missing"),
    yaml("model.path a number", "./model", "5", "bot.yaml: model.path quotes"),
    yaml("model.path empty", "./model", "''", "bot.yaml: model.path"),
    yaml("an unknown dtype", "path: ./model", "path: ./model, dtype: float64", "bot.yaml: dtype bfloat16"),
    yaml("a model that is not there", "./model", "./modell", "model.path: modell no such folder", 1),
    yaml("a model that is a file", "./model", "./one.jsonl", "one.jsonl: no such folder", 1),
    yaml("a revision of a folder", "path: ./model", "path: ./model, revision: main", "bot.yaml: model.revision"),
    yaml("an unknown key", "seed: 0", "sed: 0", "bot.yaml: sed unknown key seed"),
    yaml("an unknown key of a task", "eval: one_eval.jsonl}", "evel: x}", "bot.yaml: tasks[0].evel eval"),
    yaml("an unknown key of the gate", "margin: 2.0", "margn: 2.0", "bot.yaml: gate.margn margin"),
    yaml("a margin of 0", "margin: 2.0", "margin: 0", "bot.yaml: gate.margin above 0"),
    yaml("a margin of a task that is not there", "margin: 2.0", "margins: {ten: 1}", "bot.yaml: gate.margins ten one"),
    yaml("inconclusive maybe", "margin: 2.0", "inconclusive: maybe", "bot.yaml: gate.inconclusive hold"),
    yaml("no tasks", TASK, "  []", "bot.yaml: tasks at least one"),
    yaml("tasks as text", f"\n{TASK}", " one", "bot.yaml: tasks list"),
    yaml("a task that is text", TASK, "  - one", "bot.yaml: tasks[0] mapping"),
    yaml("a task without rows", TASK, "  - {name: one}", "bot.yaml: tasks[0].train missing"),
    yaml("rows as a list", "train: one.jsonl", "train: [a, b]", "bot.yaml: tasks[0].train string"),
    yaml("rows without a name", "train: one.jsonl", "train: ''", "bot.yaml: tasks[0].train"),
    yaml("the YAML as rows", "train: one.jsonl", "train: bot.yaml", "bot.yaml: wanted *.jsonl", 1),
    yaml("the model as rows", "train: one.jsonl", "train: ./model", "one: load `train` model`:", 1),
    yaml("two tasks of one name", TASK, f"{TASK}\n{TASK.replace('one,', 'One,')}", "bot.yaml: One one"),
    yaml("an unknown metric", "eval: one_eval.jsonl", "eval: one_eval.jsonl, metric: bleu", "bleu exact_match"),
    yaml("a template with a brace", TASK, TASK.replace("}", ", template: '{text'}"), "bot.yaml: template {{"),
    yaml("a template of attributes", TASK, TASK.replace("}", ", template: '{a.__class__}'}"), "template column"),
    yaml("labels yes and no", TASK, TASK.replace("}", ", labels: [yes, no]}"), "bot.yaml: labels quotes"),
    yaml("dev_rows -1", TASK, TASK.replace("}", ", dev_rows: -1}"), "bot.yaml: dev_rows at least 0"),
    yaml("limit_train 0", TASK, TASK.replace("}", ", limit_train: 0}"), "bot.yaml: limit_train at least 1"),
    yaml("rank 0", "rank: 4", "rank: 0", "bot.yaml: method.rank at least 1"),
    yaml("rank 4096 of a small layer", "rank: 4", "rank: 4096", "rank 4096"),
    yaml("rank 1000000000", "rank: 4", "rank: 1000000000", "rank"),
    yaml("lora.r 1000000000", "{r: 4", "{r: 1000000000", "lora.r"),
    yaml("lora.r 0", "{r: 4", "{r: 0", "bot.yaml: lora.r at least 1"),
    yaml("lora_alpha nan", "{r: 4", "{r: 4, lora_alpha: .nan", "bot.yaml: lora_alpha"),
    yaml("scale nan", "rank: 4", "rank: 4, scale: .nan", "bot.yaml: scale"),
    yaml("core_learning_rate nan", "rank: 4", "rank: 4, core_learning_rate: .nan", "bot.yaml: core_learning_rate"),
    yaml("recompress nan", "rank: 4", "rank: 4, recompress: .nan", "bot.yaml: recompress"),
    yaml("energy 1", "rank: 4", "rank: 4, energy: 1.0", "bot.yaml: method.energy below 1"),
    yaml("budget 0", "rank: 4", "rank: 4, budget: 0", "bot.yaml: method.budget above 0"),
    yaml("oversampling 1000000000", "rank: 4", "rank: 4, oversampling: 1000000000", "bot.yaml: oversampling"),
    yaml("power_steps 1000000000", "rank: 4", "rank: 4, power_steps: 1000000000", "bot.yaml: power_steps"),
    yaml("max_prompt_tokens 0", "max_prompt_tokens: 48", "max_prompt_tokens: 0", "max_prompt_tokens at least 1"),
    yaml("max_new_tokens 1000000000", "max_new_tokens: 2", "max_new_tokens: 1000000000", "max_new_tokens"),
    yaml("eval.limit 0", "max_new_tokens: 2", "limit: 0", "bot.yaml: eval: limit at least 1"),
    yaml("layers that are not there", "all-linear", "[nope]", "target_modules `nope` matches", 1),
    yaml("a pattern that is none", "all-linear", "['(']", "target_modules ( pattern expression", 1),
    yaml("a pattern without an end", "all-linear", "['([a-z_.0-9]+)+!']", "target_modules matches", 1),
    training("num_train_epochs", "0", "bot.yaml: num_train_epochs"),
    training("weight_decay", "-1", "bot.yaml: weight_decay at least 0"),
    training("weight_decay", ".nan", "bot.yaml: weight_decay nan"),
    training("max_grad_norm", ".nan", "bot.yaml: max_grad_norm nan"),
    training("adam_epsilon", ".nan", "bot.yaml: adam_epsilon nan"),
    training("adam_beta1", "2.0", "bot.yaml: adam_beta1"),
    training("report_to", "tensorbord", "report_to tensorbord tensorboard"),
    training("save_strategy", "best", "save_strategy best"),
    training("save_total_limit", "0", "bot.yaml: save_total_limit"),
    training("dataloader_num_workers", "-1", "bot.yaml: dataloader_num_workers"),
    training("hub_token", "hf_SECRET", "bot.yaml: training.hub_token"),
    training("push_to_hub", "true", "bot.yaml: training.push_to_hub"),
    training("accelerator_config", "nonsense.json", "accelerator_config"),
    training("1", "2", "bot.yaml: training 1"),
    training("null", "2", "bot.yaml: training"),
    training("learning_rat", "1", "learning_rat learning_rate"),
    training("optim", "bogus", "training: bogus adamw_torch"),
    training("output_dir", "/tmp/x", "bot.yaml: training.output_dir"),
    training("lr_scheduler_type", "bogus", "bogus linear"),
    training("deepspeed", "x.json", "training.deepspeed"),
    *(
        yaml(f"name {name[:12]!r}", "name: one", f"name: {json.dumps(name)}", "bot.yaml: tasks[0] name")
        for name in ("../x", "a/b", "", ".", "..", "o n e", "\u043ene", "a\nb", "\x1b[2J", "<b>", "n" * 250, "n" * 3000)
    ),
    yaml("a name that is a number", "name: one", "name: 007", "bot.yaml: tasks[0].name quotes"),
]  # fmt: skip
