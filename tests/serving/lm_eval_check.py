"""lm-eval's local-completions against a running server, on a small task made from a local text.

    pip install 'lm-eval[api]' safetensors
    unicorn serve --model gemma3-270m &
    python3 tests/serving/lm_eval_check.py http://127.0.0.1:8000 target/release/unicorn gemma3-270m

Each question of the task gives the beginning of a sentence and four ends, of which one is the real one. lm-eval sends
each pair with `echo` and `logprobs` and adds up the probabilities of the end. The same sums are then made here from the
logits that `unicorn logits` writes, which is the arithmetic of `unicorn perplexity`, and must be equal.
"""

import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

import numpy
from safetensors.numpy import load_file

BASE, UNICORN, MODEL = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3]
TEXT = pathlib.Path(__file__).parents[2] / "goldens" / "ezekiel.txt"
QUESTIONS = 24
CHECKED = 8
# The sums go through JSON as decimal numbers of f32.
BOUND = 2e-3


def questions():
    sentences = [s.strip() for s in re.split(r"(?<=[.:;])\s+", TEXT.read_text()) if len(s.split()) >= 10]
    halves = [(" ".join(s.split()[:6]), " " + " ".join(s.split()[6:12])) for s in sentences]
    step = len(halves) // QUESTIONS
    for index in range(QUESTIONS):
        begin, end = halves[index * step]
        others = [halves[(index * step + 7 * k + 3) % len(halves)][1] for k in (1, 2, 3)]
        choices = [end, *others]
        # The right one is not always the first.
        shift = index % 4
        yield {"query": begin, "choices": choices[shift:] + choices[:shift], "gold": (4 - shift) % 4}


def run_lm_eval(folder):
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions()))
    task = {
        "task": "ends_of_sentences",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    # YAML reads JSON.
    (folder / "ends_of_sentences.yaml").write_text(json.dumps(task))
    name = json.load(urllib.request.urlopen(f"{BASE}/v1/models"))["data"][0]["id"]
    arguments = f"model={name},base_url={BASE}/v1/completions,num_concurrent=4,max_retries=1"
    subprocess.run(
        ["lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "ends_of_sentences",
         "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"],
        check=True, stdout=subprocess.DEVNULL,
    )
    samples = next((folder / "out").rglob("samples_*.jsonl"))
    results = json.loads(next((folder / "out").rglob("results_*.json")).read_text())
    return [json.loads(line) for line in samples.open()], results["results"]["ends_of_sentences"]


def tokens(text):
    body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
    request = urllib.request.Request(f"{BASE}/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["tokens"]


def likelihood(folder, context, end):
    whole = tokens(context + end)
    first = len(tokens(context))
    out = folder / "logits.safetensors"
    subprocess.run(
        [UNICORN, "logits", "--model", MODEL, "--ids", ",".join(map(str, whole)), "--output", str(out)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    logits = next(iter(load_file(out).values())).astype(numpy.float64)
    logits = logits.reshape(len(whole), -1)
    total = 0.0
    for row in range(first - 1, len(whole) - 1):
        largest = logits[row].max()
        total += logits[row, whole[row + 1]] - largest - math.log(numpy.exp(logits[row] - largest).sum())
    return total


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        samples, results = run_lm_eval(folder)
        worst = 0.0
        for sample in samples[:CHECKED]:
            for choice, response in zip(sample["doc"]["choices"], sample["filtered_resps"]):
                got = float(response[0])
                want = likelihood(folder, sample["doc"]["query"], choice)
                worst = max(worst, abs(got - want))
    accuracy = results["acc,none"]
    print(f"{len(samples)} questions, accuracy {accuracy:.3f} (chance is 0.25)")
    print(f"{4 * CHECKED} sums compared, largest difference {worst:.2e} nats (bound {BOUND})")
    if worst > BOUND or accuracy <= 0.25:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
